"""The decoder: a UNet that is conditioned on z_image and on the caption.

Paper: Ramesh et al. 2022, sec. 2.1, and GLIDE (Nichol et al. 2021) for the caption: all its states are attended to, and
the last one, which has seen every word, joins the timestep's embedding. We differ: the states come from CLIP's own text
tower, not from a second text transformer trained with the decoder.
"""

from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import nn

from minidalle.layers import TextEncoding, scale_embedding
from minidalle.unet import UNet, UNetConfig

NUM_IMAGE_TOKENS = 4  # extra context tokens made from z_image, sec. 2.1


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    embed_dim: int = 64  # D, of z_image
    text_width: int = 128  # W, of CLIP's text states


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
        text: TextEncoding,
        hide_image: torch.Tensor | None = None,
        hide_text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict the diffusion target of noised pictures.

        Args:
            x_t: noised pictures (B, C, H, W).
            t: timesteps (B,).
            z_image: CLIP embedding of the picture (B, D), unit norm.
            text: the captions (B, ...).
            hide_image: (B,) bool, True where z_image is not to be seen; None: nowhere.
            hide_text: (B,) bool, likewise for the caption.

        Returns: (B, C, H, W).
        """
        z, text_emb, mask = scale_embedding(z_image), self.text_to_emb(text.end), text.mask
        if hide_image is not None:
            z = torch.where(hide_image[:, None], self.null_image, z)
        if hide_text is not None:
            text_emb = text_emb.masked_fill(hide_text[:, None], 0.0)
            mask = mask & ~hide_text[:, None]
        image_tokens = rearrange(self.image_to_tokens(z), "b (n w) -> b n w", n=NUM_IMAGE_TOKENS)
        context = torch.cat([image_tokens, self.text_to_tokens(text.states)], dim=1)  # (B, 4 + L, context)
        mask = torch.cat([mask.new_ones(len(mask), NUM_IMAGE_TOKENS), mask], dim=1)
        return self.unet(x_t, t, self.image_to_emb(z) + text_emb, context, mask)
