"""The plain autoencoder with two squared losses: it repeats pictures well, and cannot draw what it has not been given.

Popular articles show it as DALL·E 2: a picture and its caption are each encoded as a code, the two codes are pulled
together, and a decoder draws the picture again. A caption leaves much open, so its code is the mean of the codes of all
pictures that fit, and a mean of codes is the code of no picture. It is here to be measured beside the variational one.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from minidalle.data.batches import Batch
from minidalle.losses import Noise
from minidalle.rivals.family import Family, Rival
from minidalle.rivals.pictures import PictureDecoder, PictureEncoder
from minidalle.rivals.text import RivalConfig, TextEncoder
from minidalle.training.recipes import StageRecipe
from minidalle.training.stages import Stage


@dataclass(frozen=True)
class AutoencoderConfig(RivalConfig):
    """Sizes of the autoencoder."""

    code_dim: int = 32  # numbers that stand for a picture
    widths: tuple[int, ...] = (24, 48, 64)  # channels of each level on the way down

    @property
    def map_size(self) -> int:
        """Give the cells along each side of the smallest map."""
        return self.image_size // 2 ** len(self.widths)


@dataclass(frozen=True)
class AutoencoderLossConfig:
    """What shapes the loss."""

    code_weight: float = 0.1  # of the distance between the caption's code and the picture's


class Autoencoder(nn.Module):
    """Encode a picture or a caption as one code; draw a picture from a code."""

    kind, config_class = "autoencoder", AutoencoderConfig

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        self.text = TextEncoder(config)
        shape = (config.widths[-1], config.map_size, config.map_size)
        self.text_to_code = nn.Linear(config.text_width, config.code_dim)
        self.encoder = PictureEncoder(config.widths, config.code_dim)
        self.image_to_code = nn.Linear(math.prod(shape), config.code_dim)
        self.from_code = nn.Sequential(nn.Linear(config.code_dim, math.prod(shape)), nn.Unflatten(1, shape))
        self.decoder = PictureDecoder(config.widths[::-1], config.code_dim, config.map_size)

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Give the codes (B, D) of pictures (B, 3, H, W)."""
        h = self.encoder(images, images.new_zeros(len(images), self.config.code_dim))
        return self.image_to_code(rearrange(h, "b c h w -> b (c h w)")).float()

    def encode_text(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Give the codes (B, D) of captions (B, L)."""
        return self.text_to_code(self.text(tokens, mask)[0]).float()

    def decode(self, code: torch.Tensor) -> torch.Tensor:
        """Draw the pictures (B, 3, H, W) of codes (B, D)."""
        return self.decoder(self.from_code(code), code).float()

    def forward(
        self, images: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw pictures again; give them (B, 3, H, W), and the codes of pictures and captions (B, D)."""
        code = self.encode_image(images)
        return self.decode(code), code, self.encode_text(tokens, mask)


def autoencoder_loss(model: nn.Module, batch: Batch, generator: Noise, config: AutoencoderLossConfig) -> torch.Tensor:
    """Learn to draw pictures again, and to name a picture's code from its caption: two squared errors."""
    drawn, code, text_code = model(batch.images, batch.tokens, batch.mask)
    return F.mse_loss(drawn, batch.images) + config.code_weight * F.mse_loss(text_code, code)


def draw(rival: Rival, tokens: torch.Tensor, mask: torch.Tensor, generator: Noise) -> torch.Tensor:
    """Draw each caption's code: the same picture for every seed."""
    model = rival.models["autoencoder"]
    return model.decode(model.encode_text(tokens, mask))


def recipe(steps: int, ema_decay: float) -> StageRecipe:
    """Describe a training."""
    return StageRecipe(
        steps, 64, matrix_lr=0.01, lr=2e-3, ema_decay=ema_decay, loss=AutoencoderLossConfig(), full_captions=0.5
    )


FAMILY = Family(
    name="autoencoder",
    summary="plain autoencoder, two squared losses",
    stages={"autoencoder": Stage(Autoencoder, autoencoder_loss)},
    models={"autoencoder": AutoencoderConfig()},
    recipes={"quick": {"autoencoder": recipe(1700, 0.99)}, "full": {"autoencoder": recipe(17_000, 0.999)}},
    draw=draw,
    networks=lambda models: {"text encoder": models["autoencoder"].text, "decoder": models["autoencoder"].decoder},
)
