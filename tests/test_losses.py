"""What the stages learn: their own model only, whatever it is wrapped in, on random numbers that a step decides."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import MICRO
from torch import nn

from minidalle.clip import CLIP
from minidalle.data.batches import Batch, World
from minidalle.diffusion import DiffusionConfig
from minidalle.layers import scale_embedding
from minidalle.losses import (
    DecoderLossConfig,
    PriorLossConfig,
    UpsamplerLossConfig,
    clip_loss,
    decoder_loss,
    embed,
    prior_loss,
    prior_weights,
    upsampler_loss,
)
from minidalle.training.loop import fit
from minidalle.training.recipes import TINY
from minidalle.training.stages import STAGES, StageLoss, frozen_parts, stage_source, step_generator

CPU = torch.device("cpu")
D, SIZE = 16, 16
PROCESSES = {"prior": "x_start", "decoder": "v"}


def frozen_clip() -> CLIP:
    torch.manual_seed(1)
    return CLIP(MICRO.models["clip"]).requires_grad_(False)


def batch_of(size: int = 4, step: int = 0, image_size: int = SIZE, seed: int = 0) -> Batch:
    return World(image_size, seed).batch(step, size)


def build(stage: str) -> nn.Module:
    """Build a stage's model, with an output that is not all zeros."""
    torch.manual_seed(0)
    model = STAGES[stage].model_class(MICRO.models[stage])
    if stage in ("decoder", "upsampler"):
        nn.init.normal_(model.unet.conv_out.weight, std=0.1)
    return model


def prior(model, batch: Batch, seed: int = 0, **config) -> torch.Tensor:
    diffusion = DiffusionConfig(prediction=PROCESSES["prior"]).build()
    return prior_loss(model, batch, step_generator(seed, 0), PriorLossConfig(**config), frozen_clip(), diffusion)


def decoder(model, batch: Batch, seed: int = 0, **config) -> torch.Tensor:
    diffusion = DiffusionConfig(prediction=PROCESSES["decoder"]).build()
    return decoder_loss(model, batch, step_generator(seed, 0), DecoderLossConfig(**config), frozen_clip(), diffusion)


LOSSES = {"prior": prior, "decoder": decoder}
MASKS = {"prior": 1, "decoder": 2}  # of a call's arguments, how many say what is hidden


def loss_at(stage: str, seed: int = 0):
    """Give the loss of a stage of the micro preset as the loop takes it."""
    recipe = MICRO.recipes["quick"]
    frozen = frozen_parts(stage, MICRO, {"clip": frozen_clip()} if STAGES[stage].needs else {}, CPU)
    return StageLoss(stage, stage_source(stage, MICRO, recipe, seed), recipe.stages[stage], frozen, CPU)


class Wrapped(nn.Module):
    """Pass a call on to a model, and show nothing else of it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.inner = model

    def forward(self, *args, **named):
        return self.inner(*args, **named)


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    """Be the only process of a group."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path_factory.mktemp('gloo') / 'group'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("stage", STAGES)
def test_a_wrapped_model_has_the_same_loss_and_gradients(stage, process_group):
    model, loss = build(stage), loss_at(stage)
    found = {}
    for name, wrap in (
        ("plain", lambda m: m),
        ("wrapped", Wrapped),
        ("distributed", nn.parallel.DistributedDataParallel),
    ):
        own = copy.deepcopy(model)
        value = loss(wrap(own), 3)
        value.backward()
        found[name] = [value.detach(), *(p.grad for p in own.parameters() if p.requires_grad)]
    for name in ("wrapped", "distributed"):
        for one, other in zip(found["plain"], found[name], strict=True):
            assert torch.equal(one, other), name


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_learns_and_a_seed_gives_the_same_numbers_twice(stage):
    how = replace(MICRO.recipes["quick"].stages[stage], steps=20, batch_size=16)
    recipe = replace(MICRO.recipes["quick"], stages=MICRO.recipes["quick"].stages | {stage: how})
    frozen = frozen_parts(stage, MICRO, {"clip": frozen_clip()} if STAGES[stage].needs else {}, CPU)
    runs = []
    for seed in (1, 2):
        model, losses = build(stage), []
        torch.manual_seed(seed)  # nothing may be drawn from the global source
        loss = StageLoss(stage, stage_source(stage, MICRO, recipe, 0), how, frozen, CPU)

        def watched(model: nn.Module, step: int, loss=loss, losses=losses) -> torch.Tensor:
            losses.append(loss(model, step))
            return losses[-1]

        averaged = fit(model, watched, how, progress=False)
        runs.append((torch.stack(losses).detach(), list(averaged.state_dict().values())))
    (losses, weights), (again, same) = runs
    assert losses.isfinite().all() and losses[-5:].mean() < losses[:5].mean()
    assert torch.equal(losses, again) and all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))


def changed(before: dict[str, torch.Tensor], model: nn.Module) -> list[str]:
    return [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_training_a_later_stage_leaves_clip_as_it_was(stage):
    clip, model, recipe = CLIP(MICRO.models["clip"]), build(stage), MICRO.recipes["quick"]
    clip_before, before = copy.deepcopy(clip.state_dict()), copy.deepcopy(model.state_dict())
    frozen = frozen_parts(stage, MICRO, {"clip": clip}, CPU)
    loss = StageLoss(stage, stage_source(stage, MICRO, recipe, 0), recipe.stages[stage], frozen, CPU)
    fit(model, loss, replace(recipe.stages[stage], steps=3), progress=False)
    assert changed(clip_before, clip) == []
    assert all(p.grad is None for p in clip.parameters())
    assert len(changed(before, model)) > len(before) / 2


def test_training_clip_moves_both_towers_and_the_temperature():
    clip = build("clip")
    loss_at("clip")(clip, 0).backward()
    names = {name.split(".")[0] for name, p in clip.named_parameters() if p.grad is not None and p.grad.any()}
    assert names == {"image_tower", "text_tower", "logit_scale"}


def test_clips_loss_is_that_of_its_output():
    """Pictures and captions of a batch in another order belong together still, and crosswise they do not."""
    clip, batch, generator = build("clip"), batch_of(6), torch.Generator()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    moved = replace(batch, images=batch.images[order], tokens=batch.tokens[order], mask=batch.mask[order])
    crossed = replace(batch, images=batch.images[order])
    plain, same, other = (clip_loss(clip, b, generator).item() for b in (batch, moved, crossed))
    assert plain == pytest.approx(same, rel=1e-5) and plain != pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_and_a_seed_decide_the_loss(stage):
    model, loss = build(stage), loss_at(stage)
    losses = [loss(model, step).item() for step in (0, 1, 2)]
    assert len(set(losses)) == 3
    torch.manual_seed(123)  # nothing may be drawn from the global source
    assert [loss(model, step).item() for step in (2, 0, 1)] == [losses[2], losses[0], losses[1]]
    assert loss_at(stage, seed=1)(model, 0).item() != losses[0]


def watch(loss, model, batch: Batch, **options) -> list[tuple]:
    """Compute a loss and note with what the model was asked."""
    seen = []
    handle = model.register_forward_pre_hook(lambda module, args: seen.append(args))
    with torch.no_grad():
        loss(model, batch, **options)
    handle.remove()
    return seen


@pytest.mark.parametrize("stage", LOSSES)
def test_another_seed_draws_other_noise(stage):
    model, batch = build(stage), batch_of()
    (x_t, t, *_), (other_x_t, other_t, *_) = (watch(LOSSES[stage], model, batch, seed=seed)[0] for seed in (0, 1))
    assert not torch.equal(t, other_t) and not torch.allclose(x_t, other_x_t)


def hidden(stage: str, **config: float) -> torch.Tensor:
    """Watch what is hidden over some steps: (examples, masks) bool."""
    model, rows = build(stage), []
    for seed in range(8):
        args = watch(LOSSES[stage], model, batch_of(128, seed), seed=seed, **config)[0]
        rows.append(torch.stack(args[-MASKS[stage] :], dim=1))
    assert torch.cat(rows).dtype == torch.bool
    return torch.cat(rows)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_the_prior_hides_captions_as_often_as_its_config_says(rate):
    rows = hidden("prior", p_drop_text=rate, noises=1)
    assert rows.shape == (1024, 1)
    assert rows.float().mean().item() == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 1024) ** 0.5)


@pytest.mark.parametrize("image,text", [(0.1, 0.5), (0.0, 1.0), (0.5, 0.0)])
def test_the_decoder_hides_picture_and_caption_as_often_as_its_config_says(image, text):
    rows = hidden("decoder", p_drop_image=image, p_drop_text=text).float()
    for found, rate in ((rows[:, 0], image), (rows[:, 1], text), (rows.prod(1), image * text)):  # independently
        assert found.mean().item() == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 1024) ** 0.5)


def test_the_shipped_numbers_are_the_papers_where_nothing_else_is_said():
    prior, decoder, upsampler = (TINY.recipes["full"].stages[name].loss for name in ("prior", "decoder", "upsampler"))
    assert prior.p_drop_text == 0.1 and (decoder.p_drop_image, decoder.p_drop_text) == (0.1, 0.5)
    assert (upsampler.p_blur, upsampler.blur_sigma) == (0.5, 0.6)
    assert (prior.noises, prior.max_weight) == (6, 5.0)  # ours, as the next four
    assert (decoder.image_noise, decoder.timestep_power, decoder.root_below) == (0.1, 0.5, 0.01)


def timesteps(stage: str, **config) -> torch.Tensor:
    """Draw the timesteps of some steps."""
    model = build(stage)
    seen = [watch(LOSSES[stage], model, batch_of(128, seed), seed=seed, **config)[0][1] for seed in range(8)]
    return torch.cat(seen).flatten()


def share_of_quarters(t: torch.Tensor) -> list[float]:
    return (t.div(250, rounding_mode="floor").bincount(minlength=4) / len(t)).tolist()


@pytest.mark.parametrize(
    ("stage", "config", "shares"),
    [
        ("prior", {"noises": 3}, (1 / 4,) * 4),
        ("decoder", {}, (1 / 16, 3 / 16, 5 / 16, 7 / 16)),
        ("decoder", {"timestep_power": 1.0}, (1 / 4,) * 4),
    ],
)
def test_timesteps_are_drawn_as_often_as_the_config_says(stage, config, shares):
    t = timesteps(stage, **config)
    assert t.min() >= 0 and t.max() <= 999
    for found, share in zip(share_of_quarters(t), shares, strict=True):
        assert found == pytest.approx(share, abs=4 * (share * (1 - share) / len(t)) ** 0.5)


def test_the_prior_weighs_an_error_as_v_would_but_never_more_than_five_times():
    diffusion, t = DiffusionConfig().build(), torch.arange(1000)
    x_start, noise, wrong = torch.randn(3, 1000, 16)
    x_t = diffusion.q_sample(x_start, t, noise)
    guess = x_start + 0.1 * wrong
    as_v = DiffusionConfig(prediction="v").build()
    v_guess = as_v.target(guess, diffusion.pred_eps(guess, x_t, t), t)
    ratio = (v_guess - as_v.target(x_start, noise, t)).square().sum(1) / (guess - x_start).square().sum(1)
    expected = ratio.clamp(max=5)
    torch.testing.assert_close(prior_weights(diffusion, 5.0), expected / expected.mean(), rtol=1e-3, atol=0)
    torch.testing.assert_close(prior_weights(diffusion, 1.0), torch.ones(1000))  # the paper's


def answering(answer, seen: list | None = None) -> nn.Module:
    """Make a model of a function."""

    class Model(nn.Module):
        def forward(self, *args):
            if seen is not None:
                seen.append(args)
            return answer(*args)

    return Model()


def test_the_priors_loss_is_weighted():
    """A prior that always answers with zeros is wrong by 1 at every timestep."""
    seen = []
    loss = prior(answering(lambda z_t, *_: torch.zeros_like(z_t), seen), batch_of(), noises=3)
    expected = prior_weights(DiffusionConfig().build(), 5.0)[seen[0][1]].mean()
    assert seen[0][1].shape == (4, 3) and expected != 1
    torch.testing.assert_close(loss, expected)


def test_the_prior_learns_the_embedding_of_the_picture():
    """A prior that always answers with the scaled z_image has no loss."""
    batch = batch_of()
    z_image, text = embed(frozen_clip(), batch)
    answers = scale_embedding(z_image)[:, None]
    torch.testing.assert_close(answers.norm(dim=-1), torch.full((4, 1), D**0.5))
    assert prior(answering(lambda z_t, *_: answers.expand_as(z_t)), batch) == 0
    assert prior(answering(lambda z_t, *_: answers.flip(0).expand_as(z_t)), batch) > 0.1
    assert text.z_text.shape == (4, D) and text.mask.shape == text.states.shape[:2]
    assert not any(part.requires_grad for part in (z_image, text.z_text, text.states))


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_decoder_is_given_a_z_image_as_inexact_as_its_config_says(noise):
    batch = batch_of(128)
    seen = watch(decoder, build("decoder"), batch, image_noise=noise)[0][2]
    z_image, _ = embed(frozen_clip(), batch)
    assert ((seen - z_image) * D**0.5).std().item() == pytest.approx(noise, rel=0.1)


def off_by(images: torch.Tensor, off: torch.Tensor) -> nn.Module:
    """Make a decoder that knows the pictures, and is wrong by a given number in each."""
    diffusion = DiffusionConfig(prediction=PROCESSES["decoder"]).build()

    def knowing(x_t: torch.Tensor, t: torch.Tensor, *conditions) -> torch.Tensor:
        return diffusion.target(images, diffusion.pred_eps(images, x_t, t), t) + off.view(-1, 1, 1, 1)

    return answering(knowing)


def test_small_errors_of_the_decoder_count_by_their_size_and_not_by_its_square():
    batch, off = batch_of(), torch.tensor([0.0, 0.02, 0.3, 1.0])
    model = off_by(batch.images, off)
    assert decoder(model, batch).item() == pytest.approx((off**2 + 0.01**2).sqrt().mean().item(), rel=1e-4)
    assert decoder(model, batch, root_below=0.2).item() == pytest.approx((off**2 + 0.04).sqrt().mean().item(), rel=1e-4)
    assert decoder(model, batch, root_below=None).item() == pytest.approx((off**2).mean().item(), rel=1e-4)
    assert decoder(off_by(batch.images, 0 * off), batch).item() == pytest.approx(0.01, rel=1e-4)


def test_the_upsamplers_timesteps_are_drawn_evenly():
    diffusion, seen = DiffusionConfig().build(), []
    model = answering(lambda x_t, *_: x_t, seen)
    for step in range(8):
        upsampler_loss(model, batch_of(128, step, 32), step_generator(0, step), UpsamplerLossConfig(), diffusion, 16, 2)
    t = torch.cat([args[1] for args in seen])
    for found in share_of_quarters(t):
        assert found == pytest.approx(1 / 4, abs=4 * (3 / 16 / len(t)) ** 0.5)


def test_the_upsampler_learns_on_crops_from_everywhere():
    ramp, seen = torch.arange(32.0) / 16 - 1, []
    images = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32), torch.zeros(32, 32)]).repeat(256, 1, 1, 1)
    batch = replace(batch_of(256, image_size=32), images=images)
    model = answering(lambda x_t, t, enlarged: enlarged, seen)
    process = DiffusionConfig(prediction="x_start").build()
    loss = upsampler_loss(model, batch, step_generator(0, 0), UpsamplerLossConfig(p_blur=0.0), process, 16, 2)
    assert loss < 1e-4  # on a ramp, the small picture enlarged is the large one: both are cut at the same place
    columns, rows = ((seen[0][2][:, :2, 8, 8] + 1) * 16 - 8).round().int().T.tolist()
    assert set(columns) == set(rows) == set(range(0, 17, 2)) and columns != rows
