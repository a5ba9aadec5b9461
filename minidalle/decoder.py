"""The decoder: a UNet that is told what to draw by z_image and by the caption.

Paper: Ramesh et al. 2022, sec. 2.1, and GLIDE (Nichol et al. 2021) for the caption: all its states are attended to, and
the last one, which has seen every word, joins the timestep's embedding. We differ: the states come from CLIP's own text
tower, not from a second text transformer trained with the decoder.
"""

from dataclasses import dataclass, field

import torch
from torch import nn

from minidalle.unet import UNet, UNetConfig

NUM_IMAGE_TOKENS = 4  # extra context tokens made from z_image, sec. 2.1


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder, and how often training hides what it is told."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    embed_dim: int = 64  # D, of z_image
    text_width: int = 128  # W, of CLIP's text states
    drop_image: float = 0.1  # how often z_image is hidden, sec. 2.1
    drop_text: float = 0.5  # how often the caption is hidden, sec. 2.1
    image_noise: float = 0.1  # added to z_image in training, per coordinate of size 1, since a prior is never exact


class Decoder(nn.Module):
    """Draw the picture that z_image and the caption describe."""

    kind, config_class = "decoder", DecoderConfig

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.unet = UNet(config.unet)
        self.null_image = nn.Parameter(torch.zeros(config.embed_dim))
        self.image_to_emb = nn.Linear(config.embed_dim, config.unet.emb_dim)
        self.image_to_tokens = nn.Linear(config.embed_dim, NUM_IMAGE_TOKENS * config.unet.context_dim)
        self.text_to_tokens = nn.Sequential(
            nn.LayerNorm(config.text_width), nn.Linear(config.text_width, config.unet.context_dim)
        )
        self.text_to_emb = nn.Sequential(
            nn.LayerNorm(config.text_width), nn.Linear(config.text_width, config.unet.emb_dim)
        )

    def forward(
        self,
        x_t: torch.Tensor,
        t: torch.Tensor,
        z_image: torch.Tensor,
        text_states: torch.Tensor,
        mask: torch.Tensor,
        drop_image: torch.Tensor | None = None,
        drop_text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict the diffusion target of noised pictures.

        Args:
            x_t: noised pictures (B, C, H, W).
            t: timesteps (B,).
            z_image: CLIP embedding of the picture (B, D), unit norm.
            text_states: the caption as CLIP's text tower sees it (B, L, W).
            mask: (B, L) bool, True for real tokens.
            drop_image: (B,) bool, True where z_image is to be hidden; None: nowhere.
            drop_text: (B,) bool, likewise for the caption.

        Returns: (B, C, H, W).
        """
        z = z_image * self.config.embed_dim**0.5  # coordinates of size 1
        if drop_image is not None:
            z = torch.where(drop_image[:, None], self.null_image, z)
        end = text_states[torch.arange(len(mask), device=mask.device), mask.sum(1) - 1]  # (B, W), of the end token
        told = self.text_to_emb(end)  # (B, E)
        if drop_text is not None:
            told = told.masked_fill(drop_text[:, None], 0.0)
            mask = mask & ~drop_text[:, None]
        image_tokens = self.image_to_tokens(z).unflatten(1, (NUM_IMAGE_TOKENS, -1))  # (B, 4, context)
        context = torch.cat([image_tokens, self.text_to_tokens(text_states)], dim=1)  # (B, 4 + L, context)
        mask = torch.cat([mask.new_ones(len(mask), NUM_IMAGE_TOKENS), mask], dim=1)
        return self.unet(x_t, t, self.image_to_emb(z) + told, context, mask)
