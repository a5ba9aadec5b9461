"""The features that pictures are compared by: one small network, shipped, the same for every model.

It was trained on rendered scenes to name what they show (tools/train_features.py), all combinations included. Features
of a model's own CLIP would judge that model by itself, and could not be compared between two models.
Paper: Heusel et al. 2017, who take the penultimate layer of an Inception network in the same way.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from minidalle.checkpoint import SHIPPED, load_model
from minidalle.world.scenes import BACKGROUNDS, COLORS, PLACES, RELATIONS, SHAPES, SIZES, Scene

FACTS = {  # what the network names, and the answers; the second object and the place or relation may not be there
    "background": tuple(BACKGROUNDS),
    "color": tuple(COLORS), "shape": SHAPES, "size": tuple(SIZES),
    "second color": (*COLORS, None), "second shape": (*SHAPES, None), "second size": (*SIZES, None),
    "place": (*PLACES, None), "relation": (*RELATIONS, None),
}  # fmt: skip
CHUNK = 256  # pictures at a time, which bounds the memory


@dataclass(frozen=True)
class FeatureConfig:
    """Sizes of the network."""

    image_size: int = 32
    channels: tuple[int, ...] = (24, 32, 48, 48)
    features: int = 64


class FeatureNet(nn.Module):
    """Convolutions that halve the picture, a layer of features, and a linear answer for each fact."""

    kind = "features"
    config_class = FeatureConfig

    def __init__(self, config: FeatureConfig):
        super().__init__()
        self.config = config
        widths = (3, *config.channels)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width, wider, 3, stride=1 if i == 0 else 2, padding=1)
            for i, (width, wider) in enumerate(pairwise(widths))
        )
        side = config.image_size // 2 ** (len(config.channels) - 1)
        self.to_features = nn.Linear(config.channels[-1] * side * side, config.features)
        self.heads = nn.ModuleDict({fact: nn.Linear(config.features, len(FACTS[fact])) for fact in FACTS})

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Describe images (B, 3, H, W) in [-1, 1], of any size, by features (B, D)."""
        size = self.config.image_size
        x = images if images.shape[-1] == size else F.interpolate(images, size=(size, size), mode="area")
        for convolution in self.convolutions:
            x = F.relu(convolution(x))
        return self.to_features(rearrange(x, "b c h w -> b (c h w)"))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Give logits (B, answers) for each fact."""
        hidden = F.relu(self.features(images))
        return {fact: head(hidden) for fact, head in self.heads.items()}


def answers(scenes: list[Scene]) -> dict[str, torch.Tensor]:
    """List the right answer to each fact of each scene, as an index (B,) into FACTS."""
    rows = []
    for scene in scenes:
        first, *rest = scene.objects
        second = rest[0] if rest else None
        row = {"background": scene.background, "place": scene.place, "relation": scene.relation}
        for name in ("color", "shape", "size"):
            row |= {name: getattr(first, name), f"second {name}": getattr(second, name, None)}
        rows.append(row)
    return {fact: torch.tensor([known.index(row[fact]) for row in rows]) for fact, known in FACTS.items()}


@cache
def feature_net() -> FeatureNet:
    """Load the shipped network.

    Raises: CheckpointError: when it is missing or damaged.
    """
    return load_model(FeatureNet, folder())[0].eval()


def folder() -> Path:
    """Find the folder of the shipped network: in the installed package, or in a checkout."""
    folders = [root / "features" for root in SHIPPED]
    return next((path for path in folders if path.is_dir()), folders[-1])


@torch.no_grad()
def features_of(images: torch.Tensor) -> torch.Tensor:
    """Describe any number of images (B, 3, H, W) in [-1, 1] by the shipped network: (B, D), on the CPU.

    In units in which real pictures lie at a root-mean-square distance of 1 from their mean.
    """
    net = feature_net()
    return torch.cat([net.features(chunk.cpu().float()) for chunk in images.split(CHUNK)])
