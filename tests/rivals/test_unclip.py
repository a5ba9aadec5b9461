"""unCLIP on the tables of rivals: with either prior, and with none."""

import torch

from minidalle.evaluation.ablations import draw
from minidalle.evaluation.report import count_calls
from minidalle.rivals import from_pretrained
from minidalle.rivals.unclip import VARIANTS

CAPTIONS = ["a red circle", "a small blue square at the top"]


def noise() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(len(CAPTIONS))]


def test_without_a_prior_the_decoder_draws_as_with_its_mask():
    pipe = from_pretrained("unclip_caption", "cpu")
    expected = draw(pipe, pipe.encode(CAPTIONS), None, noise())
    assert torch.allclose(pipe(CAPTIONS, generator=noise()).tensor, expected, atol=1e-6)
    other = from_pretrained("unclip", "cpu")(CAPTIONS, generator=noise()).tensor
    assert not torch.allclose(other, expected, atol=0.1)


def test_a_card_counts_what_each_variant_takes():
    calls = {name: count_calls(from_pretrained(name, "cpu")) for name in VARIANTS}
    assert calls["unclip_caption"] == {"text tower": 1, "decoder": 8}
    assert calls["unclip"] == {"text tower": 1, "prior": 32, "decoder": 8}
    assert calls["unclip_ar"]["prior"] == 33
    assert list(from_pretrained("unclip_caption", "cpu").models) == ["clip", "decoder"]
