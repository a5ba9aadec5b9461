"""What the stages train: only their own model, on random numbers that a step alone decides."""

import copy

import pytest
import torch
from torch import nn

from minidalle.clip import CLIP, CLIPConfig
from minidalle.data.batches import World
from minidalle.decoder import Decoder, DecoderConfig
from minidalle.diffusion import GaussianDiffusion, cosine_betas
from minidalle.losses import SOFTENING, clip_stage, decoder_stage, embed, prior_stage, prior_weights
from minidalle.prior import DiffusionPrior, PriorConfig
from minidalle.training.loop import fit
from minidalle.training.recipes import StageRecipe
from minidalle.unet import UNetConfig

D, W, SIZE = 8, 16, 16
CLIP_CONFIG = CLIPConfig(SIZE, patch_size=8, embed_dim=D, width=W, image_depth=1, text_depth=1, num_heads=2, pool_dim=4)
UNET = UNetConfig(SIZE, channels=8, channel_mults=(1, 2), num_blocks=1, attention_levels=(1,), emb_dim=8, context_dim=8)
RECIPE = StageRecipe(steps=3, batch_size=4, matrix_lr=0.02, lr=1e-2, warmup_steps=1)


def build(kind: str, clip: CLIP, world: World, batch_size: int = 4, **drops: float):
    """Build a stage's model and its loss."""
    if kind == "clip":
        return clip, clip_stage(clip, world, batch_size)
    if kind == "prior":
        model = DiffusionPrior(PriorConfig(D, W, width=16, depth=1, num_heads=2, **drops))
        stage = prior_stage
    else:
        model = Decoder(DecoderConfig(UNET, embed_dim=D, text_width=W, **drops))
        nn.init.normal_(model.unet.conv_out.weight, std=0.1)
        stage = decoder_stage
    prediction = "x_start" if kind == "prior" else "v"
    return model, stage(model, clip, GaussianDiffusion(cosine_betas(1000), prediction), world, batch_size)


def changed(before: dict[str, torch.Tensor], model: nn.Module) -> list[str]:
    return [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]


@pytest.mark.parametrize("kind", ["prior", "decoder"])
def test_training_a_later_stage_leaves_clip_as_it_was(kind):
    clip = CLIP(CLIP_CONFIG)
    model, loss_at = build(kind, clip, World(SIZE))
    clip_before, before = copy.deepcopy(clip.state_dict()), copy.deepcopy(model.state_dict())
    fit(model, loss_at, RECIPE)
    assert changed(clip_before, clip) == []
    assert all(p.grad is None for p in clip.parameters())
    assert len(changed(before, model)) > len(before) / 2


def test_training_clip_moves_both_towers_and_the_temperature():
    clip = CLIP(CLIP_CONFIG)
    _, loss_at = build("clip", clip, World(SIZE))
    loss_at(0).backward()
    names = {name.split(".")[0] for name, p in clip.named_parameters() if p.grad is not None and p.grad.any()}
    assert names == {"image_tower", "text_tower", "logit_scale"}


@pytest.mark.parametrize("kind", ["clip", "prior", "decoder"])
def test_a_step_and_a_seed_decide_the_loss(kind):
    clip = CLIP(CLIP_CONFIG)
    _, loss_at = build(kind, clip, World(SIZE))
    losses = [loss_at(step).item() for step in (0, 1, 2)]
    assert len(set(losses)) == 3
    torch.manual_seed(123)  # nothing may be drawn from the global source
    assert [loss_at(step).item() for step in (2, 0, 1)] == [losses[2], losses[0], losses[1]]


@pytest.mark.parametrize("kind", ["prior", "decoder"])
def test_another_seed_draws_other_noise(kind):
    seen = []
    for seed in (0, 1):
        model, loss_at = build(kind, CLIP(CLIP_CONFIG), World(SIZE, seed=seed))
        model.register_forward_pre_hook(lambda module, args: seen.append(args[:2]))
        loss_at(0)
    (x_t, t), (other_x_t, other_t) = seen
    assert not torch.equal(t, other_t) and not torch.allclose(x_t, other_x_t)


def drop_counts(kind: str, names: tuple[str, ...], **drops: float) -> torch.Tensor:
    """Watch what is hidden over some steps: (examples, names) bool."""
    model, loss_at = build(kind, CLIP(CLIP_CONFIG), World(SIZE), batch_size=128, **drops)
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(torch.stack(args[5:], dim=1)))
    with torch.no_grad():
        for step in range(8):
            loss_at(step)
    rows = torch.cat(seen)
    assert rows.shape == (1024, len(names)) and rows.dtype == torch.bool
    return rows


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_the_prior_hides_captions_as_often_as_its_config_says(rate):
    rows = drop_counts("prior", ("drop_text",), drop_text=rate)
    assert rows.float().mean().item() == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 1024) ** 0.5)


@pytest.mark.parametrize("image,text", [(0.1, 0.5), (0.0, 1.0), (0.5, 0.0)])
def test_the_decoder_hides_picture_and_caption_as_often_as_its_config_says(image, text):
    rows = drop_counts("decoder", ("drop_image", "drop_text"), drop_image=image, drop_text=text).float()
    for found, rate in ((rows[:, 0], image), (rows[:, 1], text), (rows.prod(1), image * text)):  # independently
        assert found.mean().item() == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 1024) ** 0.5)


def test_the_shipped_rates_are_the_papers():
    assert PriorConfig().drop_text == 0.1
    assert (DecoderConfig().drop_image, DecoderConfig().drop_text) == (0.1, 0.5)


@pytest.mark.parametrize(("kind", "shares"), [("prior", (1 / 4,) * 4), ("decoder", (1 / 16, 3 / 16, 5 / 16, 7 / 16))])
def test_timesteps_are_drawn_evenly_for_the_prior_and_rising_for_the_decoder(kind, shares):
    model, loss_at = build(kind, CLIP(CLIP_CONFIG), World(SIZE), batch_size=128)
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    with torch.no_grad():
        for step in range(8):
            loss_at(step)
    quarters = torch.cat(seen).div(250, rounding_mode="floor").bincount(minlength=4)
    n = quarters.sum().item()
    for count, share in zip(quarters.tolist(), shares, strict=True):
        assert count == pytest.approx(n * share, abs=4 * (n * share * (1 - share)) ** 0.5)


def test_the_prior_weighs_an_error_as_v_would_but_never_more_than_five_times():
    diffusion, t = GaussianDiffusion(cosine_betas(1000), "x_start"), torch.arange(1000)
    x_start, noise, wrong = torch.randn(3, 1000, 16)
    x_t = diffusion.q_sample(x_start, t, noise)
    guess = x_start + 0.1 * wrong
    as_v = GaussianDiffusion(cosine_betas(1000), "v")
    v_guess = as_v.target(guess, diffusion.pred_eps(guess, x_t, t), t)
    ratio = (v_guess - as_v.target(x_start, noise, t)).square().sum(1) / (guess - x_start).square().sum(1)
    expected = ratio.clamp(max=5)
    torch.testing.assert_close(prior_weights(diffusion), expected / expected.mean(), rtol=1e-3, atol=0)


def test_the_priors_loss_is_weighted():
    """A prior that always answers with zeros is wrong by 1 at every timestep."""
    model, loss_at = build("prior", CLIP(CLIP_CONFIG), World(SIZE))
    seen = []
    model.forward = lambda z_t, t, *_: seen.append(t) or torch.zeros_like(z_t)
    loss = loss_at(0)
    expected = prior_weights(GaussianDiffusion(cosine_betas(1000), "x_start"))[seen[0]].mean()
    assert expected != 1
    torch.testing.assert_close(loss, expected)


def test_the_prior_learns_the_embedding_of_the_picture():
    """A prior that always answers with the scaled z_image has no loss."""
    clip, world = CLIP(CLIP_CONFIG), World(SIZE)
    model, loss_at = build("prior", clip, world)
    z_image, z_text, text_states, mask = embed(clip, world.batch(5, 4))
    answers = model.scale(z_image)
    torch.testing.assert_close(answers.norm(dim=1), torch.full((4,), D**0.5))
    model.forward = lambda z_t, *_: answers.repeat_interleave(len(z_t) // len(answers), 0)
    assert loss_at(5) == 0
    assert z_text.shape == (4, D) and text_states.shape[2] == W and mask.shape == text_states.shape[:2]
    assert not any(part.requires_grad for part in (z_image, z_text, text_states))


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_decoder_is_told_a_z_image_as_inexact_as_its_config_says(noise):
    clip, world = CLIP(CLIP_CONFIG), World(SIZE)
    model, loss_at = build("decoder", clip, world, batch_size=128, image_noise=noise)
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    with torch.no_grad():
        loss_at(0)
    z_image, *_ = embed(clip, world.batch(0, 128))
    assert ((seen[0] - z_image) * D**0.5).std().item() == pytest.approx(noise, rel=0.1)


def test_the_decoder_learns_the_picture():
    """A decoder that knows the pictures has the least loss."""
    clip, world = CLIP(CLIP_CONFIG), World(SIZE)
    model, loss_at = build("decoder", clip, world)
    images, diffusion = world.batch(5, 4).images, GaussianDiffusion(cosine_betas(1000), "v")

    def knowing(x_t: torch.Tensor, t: torch.Tensor, *told) -> torch.Tensor:
        return diffusion.target(images, diffusion.pred_eps(images, x_t, t), t)

    model.forward = knowing
    assert loss_at(5).item() == pytest.approx(SOFTENING)


def test_small_errors_of_the_decoder_count_by_their_size_and_not_by_its_square():
    clip, world = CLIP(CLIP_CONFIG), World(SIZE)
    model, loss_at = build("decoder", clip, world)
    images, diffusion = world.batch(5, 4).images, GaussianDiffusion(cosine_betas(1000), "v")
    off = torch.tensor([0.0, 0.02, 0.3, 1.0])

    def nearly(x_t: torch.Tensor, t: torch.Tensor, *told) -> torch.Tensor:
        return diffusion.target(images, diffusion.pred_eps(images, x_t, t), t) + off.view(4, 1, 1, 1)

    model.forward = nearly
    assert loss_at(5).item() == pytest.approx((off**2 + SOFTENING**2).sqrt().mean().item(), rel=1e-4)
