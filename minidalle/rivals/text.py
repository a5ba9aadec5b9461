"""Captions for the rivals: a transformer over words, trained together with what draws, from random weights."""

from dataclasses import dataclass

import torch
from torch import nn

from minidalle.layers import Transformer, end_of


@dataclass(frozen=True)
class RivalConfig:
    """What the config of every rival that reads captions says of them, and of its pictures."""

    vocab_size: int = 64  # of the tokenizer
    context_length: int = 20  # tokens of the longest caption
    text_width: int = 96  # W, of the words' states
    text_depth: int = 2  # blocks
    num_heads: int = 3
    image_size: int = 32  # pixels


class TextEncoder(nn.Module):
    """Words that look at one another; the end token stands for the whole caption.

    Paper: Nichol et al. 2021 (GLIDE), sec. 4.1: states to attend to, and one to join the timestep's embedding.
    """

    def __init__(self, config: RivalConfig):
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.text_width)
        self.positions = nn.Parameter(0.02 * torch.randn(config.context_length, config.text_width))
        self.transformer = Transformer(config.text_width, config.text_depth, config.num_heads)
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode captions: tokens (B, L) and mask (B, L), True for real ones, to (B, W) and states (B, L, W)."""
        states = self.transformer(self.words(tokens) + self.positions[: tokens.shape[1]], mask)
        return end_of(states, mask), states
