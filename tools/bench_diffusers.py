"""Train the decoder's UNet and diffusers' UNet2DConditionModel in turn, of the same size, and print both rates.

python tools/bench_diffusers.py
"""

import json
import statistics
from collections.abc import Callable
from functools import partial

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from minidalle.decoder import Decoder
from minidalle.device import pick_device
from minidalle.evaluation.bench import median_seconds
from minidalle.training.recipes import TINY, Preset
from minidalle.training.trainer import Trainer


def against_diffusers(preset: Preset, device: torch.device, repeats: int = 7, batch_size: int = 64) -> dict:
    """Train the decoder's UNet and diffusers' UNet2DConditionModel in turn.

    Both take the same pictures and context and use the same optimisers; of the widths that diffusers' UNet can have,
    those are taken that bring it nearest to our number of parameters (both numbers are given).
    """
    unet = Decoder(preset.models["decoder"]).unet.to(device)
    config, wanted = preset.models["decoder"].unet, count_parameters(unet)
    peer = closest_peer(UNet2DConditionModel, config, wanted).to(device)
    size = config.image_size
    images = torch.randn(batch_size, 3, size, size, device=device)
    t = torch.randint(1000, (batch_size,), device=device)
    emb = torch.randn(batch_size, config.emb_dim, device=device)
    context = torch.randn(batch_size, 16, config.context_dim, device=device)
    how = preset.recipes["quick"].stages["decoder"]
    ours = partial(Trainer(unet, how).step, lambda unet, _: unet(images, t, emb, context).float().square().mean(), 0)
    theirs = partial(
        Trainer(peer, how).step, lambda peer, _: peer(images, t, context).sample.float().square().mean(), 0
    )
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


if __name__ == "__main__":
    print(json.dumps(against_diffusers(TINY, pick_device()), indent=1))
