"""Train and score the peer dalle2-pytorch 1.15.6 (Phil Wang) on our world, in our time. A program, not a test.

It needs, by `pip install --no-deps` (torchvision comes as a CUDA build; what little is used of it is put into its place
here): dalle2-pytorch==1.15.6 x-clip coca-pytorch ema-pytorch einops einx kornia kornia-rs vector-quantize-pytorch
torch-einops-utils rotary-embedding-torch resize-right pytorch-warmup accelerate pyyaml huggingface-hub frozendict
beartype ftfy regex loguru click. Then `python tools/peer_dalle2_pytorch.py --tuned -n 200`.
"""

import argparse
import importlib.util
import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F

from minidalle.data.batches import World
from minidalle.data.images import to_pil
from minidalle.device import autocast
from minidalle.evaluation import pictures, report
from minidalle.training.stages import derived_seed
from minidalle.world import oracle
from minidalle.world.captions import TOKENIZER

STUBS = ("torchvision", "torchvision.transforms")
CPU = torch.device("cpu")
SHARES = {"clip": 60 / 300, "prior": 40 / 300, "decoder": 200 / 300}  # of the seconds of training
BATCH = {"clip": 256, "prior": 64, "decoder": 64}
GUIDANCE = (1.0, 2.0)
STEPS = 50  # of DDIM, for prior and decoder
WIDTH = 128  # of z_image, z_text and the caption's states, which the peer's prior wants to be equal
LENGTH = TOKENIZER.context_length


@dataclass(frozen=True)
class Settings:
    """What differs between the tuned peer and the peer as it comes."""

    optimizers: dict[str, tuple[float, float, float]]  # learning rate, AdamW's eps, longest gradient
    tuned: bool = False  # whether to compute in bf16, and to let the learning rate rise first and fall at last
    predict: str = "noise"  # the decoder's target: noise, v or picture
    temperature: float = math.e  # CLIP's, inverse, at the start
    more: dict[str, dict] = field(default_factory=lambda: {"ema": {}, "clip": {}, "unet": {}, "decoder": {}})


TUNED = Settings(
    dict.fromkeys(SHARES, (1e-3, 1e-8, 1.0)),
    tuned=True,
    predict="v",
    temperature=1 / 0.07,
    more={
        "ema": {"beta": 0.99, "update_after_step": 0, "update_every": 1},
        "clip": {"visual_patch_dropout": 0.0, "text_encode_without_mask": True},  # its adapter encodes without the mask
        "unet": {"memory_efficient": True, "init_cross_embed": False, "attn_heads": 4},  # 2.6 times as fast
        "decoder": {"learned_variance": False},
    },
)
# As the signatures of its classes and trainers have it; it has no trainer of CLIP, which takes over the prior's rate.
DEFAULTS = Settings({"clip": (3e-4, 1e-8, math.inf), "prior": (3e-4, 1e-6, math.inf), "decoder": (1e-4, 1e-8, 0.5)})


def load_peer() -> ModuleType:
    """Import the peer with a torchvision that has only what it uses, and without its progress bars."""
    vision, transforms = (importlib.util.module_from_spec(ModuleSpec(name, None)) for name in STUBS)
    transforms.ToPILImage = lambda: lambda image: to_pil(image[None] * 2 - 1)[0]
    vision.transforms = transforms
    sys.modules |= dict(zip(STUBS, (vision, transforms), strict=True))
    import dalle2_pytorch as peer

    peer.dalle2_pytorch.tqdm = lambda items, **_: items
    return peer


def build_clip(peer: ModuleType, settings: Settings):
    """Make a CLIP of the peer's kind, as large as ours."""
    clip = peer.CLIP(
        dim_text=WIDTH, dim_image=WIDTH, dim_latent=WIDTH, num_text_tokens=TOKENIZER.vocab_size,
        text_enc_depth=3, text_heads=4, text_dim_head=32, text_seq_len=LENGTH, visual_enc_depth=3, visual_heads=4,
        visual_dim_head=32, visual_image_size=32, visual_patch_size=8, **settings.more["clip"],
    )  # fmt: skip
    clip.temperature.data.fill_(math.log(settings.temperature))
    return clip


def build_stack(peer: ModuleType, clip, settings: Settings):
    """Put prior and decoder, as large as ours, around a CLIP, which they freeze."""
    net = peer.DiffusionPriorNetwork(dim=WIDTH, depth=3, heads=4, dim_head=32, max_text_len=LENGTH)
    unet = peer.Unet(
        dim=32, dim_mults=(1, 2, 2), num_resnet_blocks=1, image_embed_dim=WIDTH, text_embed_dim=WIDTH,
        cond_on_text_encodings=True, max_text_len=LENGTH, **settings.more["unet"],
    )  # fmt: skip
    target = {"predict_v": settings.predict == "v", "predict_x_start": settings.predict == "picture"}
    prior = peer.DiffusionPrior(net, clip=clip, sample_timesteps=STEPS)
    decoder = peer.Decoder(unet, clip=clip, sample_timesteps=STEPS, **target, **settings.more["decoder"])
    return peer.DALLE2(prior=prior, decoder=decoder)


def draw(stage: str, seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw what `quick` draws for a stage: captions, all of full length as it attends to padding, and pictures."""
    more = {"hard_negatives": True, "full_captions": 0.5} if stage == "clip" else {}
    world = World(32, derived_seed(stage, seed), two_objects=0.0, **more)
    batch = world.batch(step, BATCH[stage])
    return F.pad(batch.tokens, (0, LENGTH - batch.tokens.shape[1])), (batch.images + 1) / 2


def fit(stage: str, net, loss_of: Callable, settings: Settings, seconds: float, seed: int) -> int:
    """Train a network for so many seconds of wall time, with the peer's AdamW and EMA, and give the number of steps."""
    from dalle2_pytorch.optimizer import get_optimizer
    from ema_pytorch import EMA

    lr, eps, longest = settings.optimizers[stage]
    optimizer = get_optimizer(net.parameters(), lr=lr, eps=eps)
    ema = EMA(net, use_foreach=True, **settings.more["ema"]) if stage != "clip" else None  # as its trainers have it
    started, step = time.perf_counter(), 0
    while (share := (time.perf_counter() - started) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * (min(1, 0.05 + share / 0.03, 2 * (1 - share)) if settings.tuned else 1)
        tokens, images = draw(stage, seed, step)
        with autocast(CPU) if settings.tuned else nullcontext():
            loss = loss_of(tokens, images)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), longest)
        optimizer.step()
        if ema:
            ema.update()
        step += 1
    if ema:
        ema.copy_params_from_ema_to_model()
    return step


def paint(stack, settings: Settings, guidance: float, captions: list[str], seeds: list[int]) -> torch.Tensor:
    """Draw captions with the whole stack: best of two z_image, then the decoder; gives images in [-1, 1].

    It draws its noise from torch's own source, so the first picture's seed serves for all that are drawn with it.
    """
    torch.manual_seed(seeds[0])
    tokens, _ = TOKENIZER.encode(captions)
    with torch.no_grad(), autocast(CPU) if settings.tuned else nullcontext():
        images = stack(F.pad(tokens, (0, LENGTH - tokens.shape[1])), cond_scale=guidance)
    return (images.float() * 2 - 1).view(-1, 3, 32, 32).clamp(-1, 1)


def measure(stack, settings: Settings, n: int, seed: int, sheet: Path | None) -> list[str]:
    """Score seen and held-out prompts at each guidance; give exact matches, and seconds a picture at the last one."""
    cells = []
    for kind in ("one object, seen", "one object, held out"):
        asked, cell, drawn = report.draw_prompts(n, 0.0, kind.split(", ")[1], f"report/{kind}/{seed}"), [], []
        captions = [prompt.caption for prompt in asked]
        for guidance in GUIDANCE:
            started = time.perf_counter()
            drawn.append(report.paint_all(lambda c, s, g=guidance: paint(stack, settings, g, c, s), captions, seed))
            seconds = (time.perf_counter() - started) / n
            rates = report.score(asked, oracle.read(drawn[-1]))
            print(kind, guidance, {name: round(100 * rate.share, 1) for name, rate in rates.items()})
            low, high = rates["exact"].interval
            cell.append(f"{100 * rates['exact'].share:.1f} % ({100 * low:.1f}-{100 * high:.1f})")
        cells.append("; ".join(cell))
        if sheet and kind.endswith("seen"):
            rows = zip(captions[:16], torch.stack(drawn, 1), strict=False)
            pictures.save_figure(pictures.contact_sheet(list(rows)), sheet)
    started = time.perf_counter()
    paint(stack, settings, GUIDANCE[-1], [report.DIVERSITY_PROMPT], [seed])
    return [*cells, f"{seconds:.3f}; {time.perf_counter() - started:.2f}"]


def main() -> None:
    """Train CLIP, prior and decoder in turn, then draw, score, and print a row of the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300, help="of training: a fifth CLIP, two thirds the decoder")
    parser.add_argument("--tuned", dest="settings", action="store_const", const=TUNED, default=TUNED)
    parser.add_argument("--defaults", dest="settings", action="store_const", const=DEFAULTS)
    parser.add_argument("--predict", choices=("noise", "v", "picture"), help="else v when tuned, noise by default")
    parser.add_argument("-n", type=int, default=200, help="prompts of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="where to write sixteen of the pictures, at each guidance")
    args = parser.parse_args()
    settings, peer = replace(args.settings, predict=args.predict or args.settings.predict), load_peer()
    torch.manual_seed(args.seed)
    clip = build_clip(peer, settings)
    seconds, steps = {stage: args.seconds * share for stage, share in SHARES.items()}, {}
    steps["clip"] = fit("clip", clip, lambda t, i: clip(t, i, return_loss=True), settings, seconds["clip"], args.seed)
    stack = build_stack(peer, clip, settings)
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    nets = {"prior": stack.prior.net, "decoder": stack.decoder.unets[0]}
    losses = {"prior": lambda t, i: stack.prior(text=t, image=i), "decoder": lambda t, i: stack.decoder(i, text=t)}
    for stage, net in nets.items():
        steps[stage] = fit(stage, net, losses[stage], settings, seconds[stage], args.seed)
    cells = measure(stack.eval(), settings, args.n, args.seed, args.sheet)
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items()), "CLIP has moved"
    sizes = " + ".join(f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f} M" for net in (clip, *nets.values()))
    rate = steps["decoder"] * BATCH["decoder"] / seconds["decoder"]
    print(
        "| peer | CLIP + prior + UNet | decoder training, pictures/s | steps of each | exact, seen, at guidance 1; 2 "
        "| exact, held out | seconds a picture at guidance 2, in batches; alone |\n|---|---|---|---|---|---|---|\n"
        f"| dalle2-pytorch 1.15.6, {'tuned' if settings.tuned else 'defaults'}, predicts {settings.predict} | {sizes} "
        f"| {rate:.0f} | {', '.join(map(str, steps.values()))} | {' | '.join(cells)} |"
    )


if __name__ == "__main__":
    main()
