"""CLIP: two towers that put a picture and its caption at the same place on the unit sphere.

Paper: Radford et al. 2021, sec. 2.3 to 2.5. This file knows nothing of diffusion.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from minidalle.layers import TextEncoding, Transformer, end_of

INITIAL_TEMPERATURE = 0.07  # sec. 2.5
MAX_LOGIT_SCALE = math.log(100)  # sec. 2.5: "to prevent training instability"


@dataclass(frozen=True)
class CLIPConfig:
    """Sizes of both towers."""

    vocab_size: int = 64  # of the tokenizer
    context_length: int = 20  # tokens of the longest caption, its end token included
    image_size: int = 32  # pixels
    patch_size: int = 8  # pixels, a multiple of 4
    embed_dim: int = 64  # D, of z_image and z_text
    width: int = 128  # W, of both transformers
    image_depth: int = 3  # blocks
    text_depth: int = 3
    num_heads: int = 4
    pool_dim: int = 32  # numbers that each patch hands to the pooling

    def __post_init__(self):
        if self.patch_size % 4 or self.image_size % self.patch_size:
            raise ValueError(
                f"Patches of {self.patch_size} pixels do not tile a picture of {self.image_size}: "
                "choose a multiple of 4 that divides the size."
            )


class ImageTower(nn.Module):
    """A vision transformer: patches become tokens, tokens become one z_image.

    Paper: Dosovitskiy et al. 2021. We differ: three small convolutions cut the patches (Xiao et al. 2021), and z_image
    is a linear map of all tokens side by side, so that it knows where objects are without having to learn it.
    """

    def __init__(self, config: CLIPConfig):
        super().__init__()
        num_patches = (config.image_size // config.patch_size) ** 2
        stride = config.patch_size // 4
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(64, config.width, stride, stride=stride),
        )
        self.positions = nn.Parameter(0.02 * torch.randn(num_patches, config.width))
        self.transformer = Transformer(config.width, config.image_depth, config.num_heads)
        self.pool = nn.Linear(config.width, config.pool_dim)
        self.to_z_image = nn.Linear(num_patches * config.pool_dim, config.embed_dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embed pictures: (B, 3, H, W) to z_image (B, D), unit norm."""
        x = rearrange(self.stem(images), "b w rows columns -> b (rows columns) w")  # (B, N, W)
        x = self.transformer(x + self.positions)
        x = rearrange(self.pool(x), "b n pool -> b (n pool)")
        return F.normalize(self.to_z_image(x).float(), dim=-1)


class TextTower(nn.Module):
    """A causal transformer over words; the end token, which has seen them all, becomes z_text.

    Paper: Radford et al. 2021, sec. 2.4.
    """

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Parameter(0.01 * torch.randn(config.context_length, config.width))
        self.transformer = Transformer(config.width, config.text_depth, config.num_heads)
        self.to_z_text = nn.Linear(config.width, config.embed_dim, bias=False)
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> TextEncoding:
        """Encode captions: tokens (B, L), and mask (B, L), True for real ones."""
        x = self.words(tokens) + self.positions[: tokens.shape[1]]  # (B, L, W)
        states = self.transformer(x, causal=True).float()
        z_text = self.to_z_text(end_of(states, mask))  # (B, D)
        return TextEncoding(F.normalize(z_text.float(), dim=-1), states, mask)


class CLIP(nn.Module):
    """Both towers and the temperature between them."""

    kind, config_class = "clip", CLIPConfig

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.image_tower = ImageTower(config)
        self.text_tower = TextTower(config)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / INITIAL_TEMPERATURE)))

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Embed pictures (B, 3, H, W) in [-1, 1] as z_image (B, D), unit norm.

        Raises: ValueError: when the pictures have the wrong shape.
        """
        size = self.config.image_size
        if images.shape[1:] != (3, size, size):
            raise ValueError(
                f"CLIP reads pictures of shape {(3, size, size)}; found {tuple(images.shape[1:])}: resize."
            )
        return self.image_tower(images)

    def encode_text(self, tokens: torch.Tensor, mask: torch.Tensor) -> TextEncoding:
        """Encode captions, tokens and mask (B, L) as the tokenizer gives them."""
        return self.text_tower(tokens, mask)

    def forward(
        self, images: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embed pictures and captions: z_image (B, D), z_text (B, D), and the scale of their cosines ().

        The scale is the inverse temperature, 100 at most. Paper: Radford et al. 2021, fig. 3.
        """
        scale = self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        return self.encode_image(images), self.encode_text(tokens, mask).z_text, scale


def contrastive_loss(
    z_image: torch.Tensor, z_text: torch.Tensor, scale: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """Score how well each picture finds its caption in the batch, and each caption its picture.

    Args:
        z_image, z_text: (B, D), unit norm; row n of both belongs together.
        scale: inverse temperature, ().
        tokens: (B, L); where two captions are the same, neither is a negative of the other's picture.

    Returns: (), the mean of the two cross-entropies; ln B for a uniform guess.
    Paper: Radford et al. 2021, fig. 3. We differ: there, duplicates count as negatives.
    """
    logits_per_image = scale * z_image @ z_text.T  # (B, B)
    duplicates = (tokens[:, None] == tokens[None]).all(-1).fill_diagonal_(False)
    logits_per_image = logits_per_image.masked_fill(duplicates, -torch.inf)
    labels = torch.arange(len(tokens), device=tokens.device)
    return (F.cross_entropy(logits_per_image, labels) + F.cross_entropy(logits_per_image.T, labels)) / 2
