"""How fast this machine trains and draws, also as a share of its own matrix-multiply rate, since machines differ."""

import random
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from minidalle.clip import CLIP
from minidalle.data.batches import World
from minidalle.decoder import Decoder
from minidalle.device import autocast, half_precision
from minidalle.losses import clip_stage, decoder_stage, prior_stage
from minidalle.pipeline import MiniDalle, decoder_diffusion, prior_diffusion
from minidalle.training.optim import make_optimizers
from minidalle.training.recipes import STAGES, Preset
from minidalle.training.stages import KINDS
from minidalle.world.render import render
from minidalle.world.scenes import draw_scene

PROMPT = "a red circle above a blue square"


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def median_seconds(work: Callable[[], object], device: torch.device, repeats: int, warmup: int = 2) -> float:
    """Time a piece of work several times and give the median."""
    times = []
    for i in range(warmup + repeats):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        if i >= warmup:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def matmul_rate(device: torch.device, size: int = 1024) -> float:
    """Measure the machine's matrix-multiply rate in the precision that training uses, in FLOP/s."""
    dtype = half_precision(device) or torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, device, repeats=20)


def training_step(model: nn.Module, loss_at: Callable[[int], torch.Tensor], device: torch.device) -> Callable[[], None]:
    """Make one step of training, optimisers included."""
    optimizers = make_optimizers(model, matrix_lr=1e-4, lr=1e-5)

    def step() -> None:
        with autocast(device):
            loss = loss_at(0)
        model.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


def stage_steps(preset: Preset, batch_size: int, device: torch.device) -> dict[str, Callable[[], None]]:
    """Make a training step of each stage, from random weights."""
    models = {stage: KINDS[stage](getattr(preset, stage)).to(device) for stage in STAGES}
    world = World(preset.clip.image_size)
    frozen = CLIP(preset.clip).to(device).requires_grad_(False)
    losses = {
        "clip": clip_stage(models["clip"], world, batch_size),
        "prior": prior_stage(models["prior"], frozen, prior_diffusion().to(device), world, batch_size),
        "decoder": decoder_stage(models["decoder"], frozen, decoder_diffusion().to(device), world, batch_size),
    }
    return {stage: training_step(models[stage], losses[stage], device) for stage in STAGES}


def renderer_rate(image_size: int, repeats: int, number: int = 1000) -> float:
    """Draw pictures of the world on one core; pictures a second."""
    rng, threads = random.Random(0), torch.get_num_threads()
    scenes = [draw_scene(rng) for _ in range(number)]
    torch.set_num_threads(1)
    try:
        return number / median_seconds(lambda: render(scenes, image_size), torch.device("cpu"), repeats)
    finally:
        torch.set_num_threads(threads)


def peak_memory(device: torch.device) -> int:
    """Give the most memory used so far, in bytes: of the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource  # not there on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def bench(preset: Preset, device: torch.device, repeats: int = 7, batch_size: int = 64) -> dict:
    """Measure training rates of CLIP, prior and decoder, the cost of a generated picture, and memory."""
    peak = matmul_rate(device)
    result: dict = {"device": str(device), "threads": torch.get_num_threads(), "matmul GFLOP/s": round(peak / 1e9, 1)}
    result["rendered pictures/s on one core"] = round(renderer_rate(preset.clip.image_size, repeats))
    for stage, step in stage_steps(preset, batch_size, device).items():
        with FlopCounterMode(display=False) as counter:
            step()
        seconds = median_seconds(step, device, repeats)
        result[f"{stage} training"] = {
            "pictures/s": round(batch_size / seconds, 1),
            "share of matmul rate": round(counter.get_total_flops() / seconds / peak, 3),
        }
    pipe = MiniDalle(*(KINDS[stage](getattr(preset, stage)) for stage in STAGES), device)
    result["one picture"] = one_picture(pipe, device, repeats, peak)
    result["peak memory MB"] = round(peak_memory(device) / 2**20)
    return result


def one_picture(pipe: MiniDalle, device: torch.device, repeats: int, peak: float) -> dict:
    """Measure what one picture of one prompt costs at the default settings."""
    calls = dict.fromkeys(("prior", "decoder"), 0)

    def count(name: str) -> Callable:
        def hook(*_) -> None:
            calls[name] += 1

        return hook

    hooks = [getattr(pipe, name).register_forward_hook(count(name)) for name in calls]
    with FlopCounterMode(display=False) as counter:
        pipe(PROMPT)
    for hook in hooks:
        hook.remove()
    seconds = median_seconds(lambda: pipe(PROMPT), device, repeats)
    return {
        "ms": round(seconds * 1e3, 1),
        "network calls": calls,
        "share of matmul rate": round(counter.get_total_flops() / seconds / peak, 3),
    }


def against_diffusers(preset: Preset, device: torch.device, repeats: int = 7, batch_size: int = 64) -> dict | None:
    """Train the decoder's UNet and diffusers' UNet2DConditionModel in turn; None where diffusers is not installed.

    Both take the same pictures and context and use the same optimisers; of the widths that diffusers' UNet can have,
    those are taken that bring it nearest to our number of parameters (both numbers are given).
    """
    try:
        from diffusers import UNet2DConditionModel
    except ImportError:
        return None
    unet = Decoder(preset.decoder).unet.to(device)
    config, wanted = preset.decoder.unet, count_parameters(unet)
    peer = closest_peer(UNet2DConditionModel, config, wanted).to(device)
    size = config.image_size
    images = torch.randn(batch_size, 3, size, size, device=device)
    t = torch.randint(1000, (batch_size,), device=device)
    emb = torch.randn(batch_size, config.emb_dim, device=device)
    context = torch.randn(batch_size, 16, config.context_dim, device=device)
    ours = training_step(unet, lambda _: unet(images, t, emb, context).float().square().mean(), device)
    theirs = training_step(peer, lambda _: peer(images, t, context).sample.float().square().mean(), device)
    times = {"ours": [], "diffusers": []}
    for _ in range(repeats):
        times["ours"].append(median_seconds(ours, device, 1, warmup=1))
        times["diffusers"].append(median_seconds(theirs, device, 1, warmup=1))
    ratios = sorted(b / a for a, b in zip(times["ours"], times["diffusers"], strict=True))
    return {
        "parameters": {"ours": wanted, "diffusers": count_parameters(peer)},
        "pictures/s": {name: round(batch_size / statistics.median(seconds), 1) for name, seconds in times.items()},
        "ratio": {
            "median": round(statistics.median(ratios), 2),
            "low": round(ratios[0], 2),
            "high": round(ratios[-1], 2),
        },
    }


def count_parameters(model: nn.Module) -> int:
    """Count a model's parameters."""
    return sum(p.numel() for p in model.parameters())


def closest_peer(make: Callable, config, wanted: int) -> nn.Module:
    """Build diffusers' UNet of three levels whose widths bring it nearest to a number of parameters."""

    def build(width: int, last: int) -> nn.Module:
        return make(
            sample_size=config.image_size,
            in_channels=3,
            out_channels=3,
            layers_per_block=config.num_blocks,
            block_out_channels=(width, 2 * width, last),
            down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            cross_attention_dim=config.context_dim,
            attention_head_dim=8,
            norm_num_groups=4,
        )

    widths = [(width, 2 * width + more) for width in range(16, 97, 4) for more in (-8, 0, 8)]
    with torch.device("meta"):  # counting needs no memory
        best = min(widths, key=lambda pair: abs(count_parameters(build(*pair)) - wanted))
    return build(*best)
