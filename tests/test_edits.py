"""Edits: ends that are exact, pixels that stay, and sentences for what makes no sense."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from minidalle import edits
from minidalle.ar_prior import AutoregressivePrior, AutoregressivePriorConfig
from minidalle.edits import (
    Latent,
    compose,
    compose_z,
    interpolate,
    invert,
    reconstruct,
    redraw,
    slerp,
    text_diff,
    variations,
)

PROMPT = "a red circle"


def pictures(number: int = 2) -> torch.Tensor:
    return torch.rand(number, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Slerp


@given(st.floats(0, 1), st.integers(0, 50))
def test_slerp_turns_evenly_and_keeps_to_the_plane(share, seed):
    first, second = F.normalize(torch.randn(2, 1, 6, generator=noise(seed), dtype=torch.float64), dim=-1)
    mixed = slerp(first, second, share)
    angle = math.acos(float((first * second).sum()))
    assert abs(float(mixed.norm()) - 1) < 1e-6
    torch.testing.assert_close((mixed * first).sum(), torch.tensor(math.cos(share * angle)).double())
    torch.testing.assert_close((mixed * second).sum(), torch.tensor(math.cos((1 - share) * angle)).double())


def test_slerp_ends_are_exact_and_lengths_go_evenly():
    first, second = torch.randn(2, 3, 2, 4)
    torch.testing.assert_close(slerp(first, second, 0.0), first)
    torch.testing.assert_close(slerp(first, second, 1.0), second)
    torch.testing.assert_close(slerp(first, 3 * first, 0.5), 2 * first)
    halves = slerp(first, second, torch.tensor([0.0, 1.0, 0.5]))
    torch.testing.assert_close(halves[:2], torch.stack([first[0], second[1]]))


def test_slerp_of_opposite_vectors_is_finite():
    vector = torch.randn(1, 5)
    assert slerp(vector, -vector, 0.3).isfinite().all()


# Inversion and what is drawn from it


def test_the_noise_of_a_picture_leads_back_to_it(pipe, monkeypatch):
    images, signal = 0.4 * pictures(), pipe.decoder_diffusion.sqrt_alphas_cumprod

    def best(pipe, z_image):  # what a network would predict that had learned to draw standard normal noise
        return lambda x_t, t: signal[t][:, None, None, None] * x_t

    monkeypatch.setattr(edits, "conditioned", best)
    latent = invert(pipe, images, 40)
    torch.testing.assert_close(latent.z_image, pipe.clip.encode_image(images), atol=0.01, rtol=0)  # in 16 bits
    back = reconstruct(pipe, latent, 40)
    other = reconstruct(pipe, Latent(latent.z_image, torch.randn(latent.noise.shape)), 40)
    assert (back - images).abs().max() < 0.02 < 0.1 < (other - images).abs().mean()


def test_without_fresh_noise_a_variation_is_the_reconstruction_and_with_it_each_is_another(pipe):
    images = pictures()
    same = variations(pipe, images, 2, eta=0.0, num_steps=4)
    again = reconstruct(pipe, invert(pipe, images, 4), 4)
    assert same.shape == (2, 2, 3, 16, 16)
    torch.testing.assert_close(same, again[:, None].expand_as(same))
    drawn = variations(pipe, images, 2, eta=1.0, num_steps=4, generator=noise())
    assert (drawn[:, 0] - drawn[:, 1]).abs().amax((1, 2, 3)).min() > 0.01
    torch.testing.assert_close(drawn, variations(pipe, images, 2, 1.0, 4, noise()))


def test_each_picture_of_a_batch_is_varied_as_if_alone(pipe):
    images = pictures()
    together = variations(pipe, images, 2, 1.0, 3, [noise(seed) for seed in range(4)])
    alone = variations(pipe, images[1:], 2, 1.0, 3, [noise(2), noise(3)])
    torch.testing.assert_close(together[1:], alone, atol=1e-4, rtol=1e-4)


def test_interpolation_begins_and_ends_with_the_pictures(pipe):
    first, second = pictures().split(1)
    path = interpolate(pipe, first, second, 3, num_steps=4)
    ends = reconstruct(pipe, invert(pipe, torch.cat([first, second]), 4), 4)
    torch.testing.assert_close(path[[0, -1]], ends, atol=1e-4, rtol=1e-4)
    fixed = interpolate(pipe, first, second, 3, "fixed", 4, noise())
    assert fixed.shape == path.shape and (fixed[0] - path[0]).abs().max() > 0.01


def test_a_text_difference_of_nothing_changes_nothing(pipe):
    images = pictures()
    same = text_diff(pipe, images, "a red circle", "a blue circle", 0.0, 4)
    torch.testing.assert_close(same, reconstruct(pipe, invert(pipe, images, 4), 4), atol=1e-4, rtol=1e-4)


def test_a_text_difference_moves_z_image_towards_the_difference_of_the_captions(pipe, monkeypatch):
    drawn = []
    monkeypatch.setattr(edits, "reconstruct", lambda pipe, latent, steps: drawn.append(latent) or latent.noise)
    text_diff(pipe, pictures(), ["a red circle", "a ring"], ["a blue circle", "a cross"], 0.25, 4)
    before = invert(pipe, pictures(), 4)
    old, new = (pipe.encode(captions).z_text for captions in (["a red circle", "a ring"], ["a blue circle", "a cross"]))
    torch.testing.assert_close(drawn[0].noise, before.noise)
    torch.testing.assert_close(drawn[0].z_image, slerp(before.z_image, F.normalize(new - old, dim=1), 0.25))


# Drawing z_image anew, and composing


def test_strength_tells_how_far_from_its_z_image_a_picture_may_go(pipe):
    z_image = F.normalize(torch.randn(64, 16), dim=-1)
    assert redraw(pipe, z_image, 0.0) is z_image
    near, far, all_new = (redraw(pipe, z_image, share, generator=noise()) for share in (0.1, 0.5, 1.0))
    cosines = [(z * z_image).sum(1).mean() for z in (near, far, all_new)]
    assert 1 > cosines[0] > cosines[1] > cosines[2]
    torch.testing.assert_close(far.norm(dim=1), torch.ones(64))
    kept = variations(pipe, pictures(), 1, 0.0, 3, noise(), strength=0.5, prompt=PROMPT)
    text = pipe.encode([PROMPT]).repeat(2)
    latent = invert(pipe, pictures(), 3)
    expected = reconstruct(pipe, Latent(redraw(pipe, latent.z_image, 0.5, text, noise()), latent.noise), 3)
    torch.testing.assert_close(kept[:, 0], expected, atol=1e-4, rtol=1e-4)


def test_one_caption_composed_is_what_the_prior_draws_of_it(pipe):
    text = pipe.encode([PROMPT]).repeat(3)
    expected = pipe.sample_prior(text, generator=noise())
    composed = compose_z(pipe, text, 3, 1.5, noise())
    torch.testing.assert_close(composed, expected, atol=1e-3, rtol=0)


def test_a_caption_composed_with_itself_counts_twice(pipe):
    """u + s (c - u) + s (c - u) is guidance by 2 s."""
    text = pipe.encode([PROMPT]).repeat(2)
    expected = pipe.sample_prior(text, guidance_scale=3.0, generator=noise())
    torch.testing.assert_close(compose_z(pipe, text.tile(2), 2, 1.5, noise()), expected, atol=1e-3, rtol=0)


def test_pictures_of_several_captions_depend_on_each_of_them_and_not_on_their_batch(pipe):
    drawn = compose(pipe, [PROMPT, "a shape on the left"], 2, 2, generator=[noise(0), noise(1)])
    assert drawn.shape == (2, 3, 16, 16) and drawn.abs().max() <= 1
    alone = compose(pipe, [PROMPT, "a shape on the left"], 1, 2, generator=[noise(1)])
    torch.testing.assert_close(drawn[1:], alone, atol=1e-3, rtol=1e-3)
    each = compose(pipe, [[PROMPT, "a ring"], "a shape on the left"], 2, 2, generator=[noise(0), noise(1)])
    torch.testing.assert_close(each[:1], drawn[:1], atol=1e-3, rtol=1e-3)
    assert (each[1] - drawn[1]).abs().max() > 1e-3
    other = compose(pipe, [PROMPT, "a shape on the right"], 2, 2, generator=[noise(0), noise(1)])
    assert (drawn - other).abs().max() > 1e-3


def test_what_needs_the_diffusion_prior_says_so(pipe):
    sizes = {"embed_dim": 16, "text_width": 16, "width": 16, "depth": 1, "num_heads": 2, "num_coordinates": 4}
    pipe.prior = AutoregressivePrior(AutoregressivePriorConfig(**sizes))
    with pytest.raises(ValueError, match="Composing needs the diffusion prior"):
        compose(pipe, [PROMPT])
    with pytest.raises(ValueError, match="anew needs the diffusion prior"):
        variations(pipe, pictures(), 1, 1.0, 2, strength=0.5)


# What makes no sense


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 32, 32), r"The pictures are \(1, 3, 32, 32\), float32; .*\(B, 3, 16, 16\) were expected"),
        (torch.zeros(1, 1, 16, 16), r"\(1, 1, 16, 16\), float32"),
        (torch.zeros(3, 16, 16), r"\(3, 16, 16\), float32"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "uint8"),
        (torch.full((1, 3, 16, 16), 255.0), "outside -1 to 1"),
        (torch.full((1, 3, 16, 16), math.nan), "outside -1 to 1"),
        (torch.zeros(0, 3, 16, 16), "There are 0 pictures"),
        ([[0.0]], "of type list"),
    ],
)
def test_pictures_that_the_decoder_could_not_have_drawn_are_refused(pipe, images, message):
    with pytest.raises(ValueError, match=message):
        invert(pipe, images, 2)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, "much", None, True])
def test_shares_outside_0_to_1_are_refused(pipe, value):
    with pytest.raises(ValueError, match="The share of the text difference is"):
        text_diff(pipe, pictures(), PROMPT, "a blue circle", value, 2)
    with pytest.raises(ValueError, match="eta is"):
        variations(pipe, pictures(), 1, value, 2)
    with pytest.raises(ValueError, match="strength is"):
        variations(pipe, pictures(), 1, 1.0, 2, strength=value)


def test_words_that_are_unknown_and_captions_that_say_the_same_are_refused(pipe):
    with pytest.raises(ValueError, match="elephant"):
        text_diff(pipe, pictures(), PROMPT, "an elephant", 0.5, 2)
    with pytest.raises(ValueError, match="say the same before and after"):
        text_diff(pipe, pictures(), ["a ring", PROMPT], ["a cross", "a red disk"], 0.5, 2)
    with pytest.raises(ValueError, match="There are 3 prompts and 2 pictures"):
        text_diff(pipe, pictures(), [PROMPT] * 3, "a ring", 0.5, 2)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda pipe: variations(pipe, pictures(), 0), "The number of variations is 0"),
        (lambda pipe: interpolate(pipe, *pictures().split(1), 1), "The number of pictures is 1"),
        (lambda pipe: interpolate(pipe, *pictures().split(1), 3, "straight"), '"straight" is no way to treat x_T'),
        (lambda pipe: interpolate(pipe, pictures(), pictures(), 3), "2 and 2 pictures were given"),
        (lambda pipe: variations(pipe, pictures(), 2, 1.0, 2, [noise()]), "1 generators and 4"),
        (lambda pipe: compose(pipe, []), "There is nothing to compose"),
        (lambda pipe: compose(pipe, PROMPT), "There is nothing to compose: give a list of captions"),
        (lambda pipe: compose(pipe, [PROMPT, [PROMPT] * 3], 2), "3 prompts and 2 pictures"),
        (lambda pipe: compose(pipe, [PROMPT, ""]), "The prompt is empty"),
        (lambda pipe: invert(pipe, pictures(), 1), "cannot be run backwards in 1 step"),
    ],
)
def test_other_mistakes_are_named(pipe, act, message):
    with pytest.raises(ValueError, match=message):
        act(pipe)
