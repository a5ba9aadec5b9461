"""How fast this machine trains and draws, also as a share of its own matrix-multiply rate, since machines differ."""

import copy
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from minidalle.device import half_precision
from minidalle.pipeline import MiniDalle
from minidalle.training.graphs import make_trainer
from minidalle.training.recipes import Preset, Recipe, fitted
from minidalle.training.stages import STACK, STAGES, StageLoss, collection_of, frozen_parts, stage_source
from minidalle.world.render import render
from minidalle.world.scenes import draw_scene


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


def largest(preset: Preset) -> Recipe:
    """Give the last of a preset's recipes, which trains longest."""
    return list(preset.recipes.values())[-1]


def stage_steps(preset: Preset, batch_size: int, device: torch.device) -> dict[str, Callable[[], None]]:
    """Make a training step of each stage, optimisers included, from random weights."""
    recipe, steps = largest(preset), {}
    models = {stage: STAGES[stage].model_class(preset.models[stage]).to(device) for stage in STACK}
    clip = copy.deepcopy(models["clip"]).requires_grad_(False)
    for stage, model in models.items():
        how = replace(recipe.stages[stage], batch_size=batch_size)
        frozen = frozen_parts(stage, preset, {"clip": clip} if STAGES[stage].needs else {}, device)
        loss_at = StageLoss(stage, stage_source(stage, preset, recipe, 0), how, frozen, device)
        steps[stage] = partial(make_trainer(model, how, loss_at).step, loss_at, 0)
    return steps


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
    collection = collection_of(preset, largest(preset))
    preset = fitted(preset, collection.tokenizer)
    peak = matmul_rate(device)
    result: dict = {"device": str(device), "threads": torch.get_num_threads(), "matmul GFLOP/s": round(peak / 1e9, 1)}
    result["rendered pictures/s on one core"] = round(renderer_rate(preset.models["clip"].image_size, repeats))
    for stage, step in stage_steps(preset, batch_size, device).items():
        with FlopCounterMode(display=False) as counter:
            step()
        seconds = median_seconds(step, device, repeats)
        result[f"{stage} training"] = {
            "pictures/s": round(batch_size / seconds, 1),
            "share of matmul rate": round(counter.get_total_flops() / seconds / peak, 3),
        }
    models = (STAGES[stage].model_class(preset.models[stage]) for stage in STACK)
    pipe = MiniDalle(*models, collection.tokenizer, device)
    size = preset.models["clip"].image_size
    prompt = collection.source(size, 0, hard_negatives=False, full_captions=1.0).batch(0, 1).captions[0]
    result["one picture"] = one_picture(pipe, prompt, device, repeats, peak)
    result["peak memory MB"] = round(peak_memory(device) / 2**20)
    return result


def one_picture(pipe: MiniDalle, prompt: str, device: torch.device, repeats: int, peak: float) -> dict:
    """Measure what one picture of one prompt costs at the default settings."""
    calls = dict.fromkeys(("prior", "decoder"), 0)

    def count(name: str) -> Callable:
        def hook(*_) -> None:
            calls[name] += 1

        return hook

    hooks = [getattr(pipe, name).register_forward_hook(count(name)) for name in calls]
    with FlopCounterMode(display=False) as counter:
        pipe(prompt)
    for hook in hooks:
        hook.remove()
    seconds = median_seconds(lambda: pipe(prompt), device, repeats)
    return {
        "ms": round(seconds * 1e3, 1),
        "network calls": calls,
        "share of matmul rate": round(counter.get_total_flops() / seconds / peak, 3),
    }
