"""Inpainting: pixels that stay exactly, and masks that make no sense."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle.diffusion import PREDICTIONS, GaussianDiffusion, cosine_betas
from minidalle.inpaint import SIDES, inpaint, keeping, outpaint
from minidalle.pipeline import MiniDalle
from minidalle.samplers import SAMPLERS, last

PROMPT = "a red circle"


def pictures(number: int = 2) -> torch.Tensor:
    return torch.rand(number, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_model_that_is_shown_what_is_known_ends_there(prediction, sampler):
    diffusion = GaussianDiffusion(cosine_betas(50), prediction)
    images, mask = pictures(), torch.rand(2, 1, 16, 16) < 0.5
    model = keeping(diffusion, lambda x_t, t: torch.zeros_like(x_t), images, mask)
    drawn = last(SAMPLERS[sampler](diffusion, model, torch.randn(2, 3, 16, 16), 8))
    kept = (~mask).expand_as(images)
    torch.testing.assert_close(drawn[kept], images[kept], atol=2e-3, rtol=0)


@given(st.integers(0, 255), st.integers(1, 255))
@settings(max_examples=20)
def test_outside_the_mask_every_pixel_is_as_it_was(pipe_kept, first, length):
    mask = torch.zeros(256, dtype=torch.bool)
    mask[first : first + length] = True
    mask, images = mask.view(16, 16), pictures()
    painted = inpaint(pipe_kept, images, mask, PROMPT, 2, generator=noise())
    assert torch.equal(painted[:, :, ~mask], images[:, :, ~mask])
    assert painted.abs().max() <= 1 and not torch.equal(painted, images)


@pytest.fixture(scope="module")
def pipe_kept(micro_run):
    return MiniDalle.from_pretrained(micro_run, "cpu")


def test_each_picture_has_a_mask_and_a_prompt_of_its_own(pipe):
    images, masks = pictures(), torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[0, :8], masks[1, :, 8:] = True, True
    painted = inpaint(pipe, images, masks, [PROMPT, "a blue ring"], 2, generator=[noise(0), noise(1)])
    alone = inpaint(pipe, images[1:], masks[1], "a blue ring", 2, generator=[noise(1)])
    torch.testing.assert_close(painted[1:], alone, atol=1e-4, rtol=1e-4)
    assert torch.equal(painted[0, :, 8:], images[0, :, 8:])


@pytest.mark.parametrize("side", SIDES)
def test_a_picture_is_continued_on_any_side(pipe, side):
    images = pictures()
    out = outpaint(pipe, images, PROMPT, side, 5, num_steps=2, generator=noise())
    assert out.shape == ((2, 3, 16, 21) if side in ("left", "right") else (2, 3, 21, 16))
    kept = {"left": out[..., 5:], "right": out[..., :16], "top": out[..., 5:, :], "bottom": out[..., :16, :]}[side]
    assert torch.equal(kept, images)
    added = {"left": out[..., :5], "right": out[..., 16:], "top": out[..., :5, :], "bottom": out[..., 16:, :]}[side]
    assert added.std() > 0


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(8, 8, dtype=torch.bool), r"The mask has shape \(8, 8\); \(16, 16\) or \(2, 16, 16\) was expected"),
        (torch.ones(3, 16, 16, dtype=torch.bool), r"shape \(3, 16, 16\)"),
        (torch.zeros(16, 16, dtype=torch.bool), "The mask is empty"),
        (torch.stack([torch.eye(16) > 0, torch.zeros(16, 16) > 0]), "The mask is empty"),
        (torch.ones(16, 16, dtype=torch.bool), "The mask covers everything"),
        (torch.ones(16, 16), "The mask is of type float32"),
        ("left", "The mask is of type str"),
    ],
)
def test_masks_that_make_no_sense_are_refused(pipe, mask, message):
    with pytest.raises(ValueError, match=message):
        inpaint(pipe, pictures(), mask, PROMPT, 2)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda pipe: outpaint(pipe, pictures(), PROMPT, "up"), '"up" is no side of a picture'),
        (lambda pipe: outpaint(pipe, pictures(), PROMPT, "top", 16), "added pixels is 16; a whole number from 1 to 15"),
        (lambda pipe: outpaint(pipe, torch.zeros(1, 3, 8, 8), PROMPT), r"The pictures are \(1, 3, 8, 8\)"),
        (lambda pipe: inpaint(pipe, torch.zeros(1, 4, 16, 16), torch.eye(16) > 0, PROMPT), r"\(1, 4, 16, 16\)"),
        (lambda pipe: inpaint(pipe, pictures(), torch.eye(16) > 0, ""), "The prompt is empty"),
        (lambda pipe: inpaint(pipe, pictures(), torch.eye(16) > 0, "an elephant"), "elephant"),
        (lambda pipe: inpaint(pipe, pictures(), torch.eye(16) > 0, PROMPT, generator=[noise()]), "1 generators and 2"),
    ],
)
def test_other_mistakes_are_named(pipe, act, message):
    with pytest.raises(ValueError, match=message):
        act(pipe)
