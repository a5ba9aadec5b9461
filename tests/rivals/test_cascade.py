"""The cascade: thresholding by numpy, guidance and noise augmentation by hand, and whole trainings at a tiny size."""

import signal
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minidalle.checkpoint import load_model
from minidalle.data.batches import World
from minidalle.diffusion import DiffusionConfig
from minidalle.rivals import cascade, from_pretrained
from minidalle.rivals.cascade import Cascade, CascadeConfig, CascadeUpsampler, CascadeUpsamplerConfig, thresholded
from minidalle.rivals.denoiser import Denoiser, DenoisingLossConfig, denoising_loss, reader
from minidalle.rivals.family import Rival
from minidalle.training.run import train
from minidalle.training.stages import derived_seed
from minidalle.upsampler import shrink

UNET = replace(cascade.BASE, channels=8, emb_dim=16, context_dim=16)
CONFIG = CascadeConfig(text_width=16, text_depth=1, num_heads=2, unet=UNET)
UPSAMPLER = CascadeUpsamplerConfig(replace(cascade.UPSAMPLER, channels=8, emb_dim=16))
SMALL = replace(
    cascade.FAMILY,
    models={"cascade_upsampler": UPSAMPLER, "cascade": CONFIG},
    recipes={"quick": {k: replace(r, batch_size=4) for k, r in cascade.recipes(6, 6, 0.9).items()}},
)
DIFFUSION = DiffusionConfig().build()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def alive(model: torch.nn.Module) -> torch.nn.Module:
    """Give weights to what starts as zero, so that every condition matters."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cascade")
    train(SMALL.preset(), "quick", path, tuple(SMALL.stages))
    return path


@given(st.lists(st.floats(-4, 4, width=32), min_size=12, max_size=12), st.floats(0, 1))
def test_thresholding_is_that_of_numpy(values, percentile):
    x = np.array(values, dtype=np.float32).reshape(1, 3, 2, 2)
    bound = max(1.0, np.percentile(np.abs(x), 100 * percentile))
    found = thresholded(lambda x_t, t: torch.from_numpy(x), percentile)(None, None)
    np.testing.assert_allclose(found, np.clip(x, -bound, bound) / bound, rtol=1e-4, atol=1e-5)


def test_each_picture_is_bounded_by_itself():
    x = torch.stack([torch.full((3, 4, 4), 2.0), torch.full((3, 4, 4), 0.5)])
    found = thresholded(lambda x_t, t: x, 0.9)(None, None)
    assert found[0].eq(1).all() and found[1].eq(0.5).all()  # what lies within [-1, 1] stays


def test_the_limits_of_thresholding_are_clipping_and_scaling():
    x = 2 * torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(thresholded(lambda x_t, t: x, 0)(None, None), x.clamp(-1, 1))
    largest = x.abs().amax((1, 2, 3), keepdim=True)
    torch.testing.assert_close(thresholded(lambda x_t, t: x, 1)(None, None), x / largest)


@pytest.mark.parametrize("percentile", [-0.1, 1.5, 99.5, float("nan")])
def test_a_percentile_that_is_no_share_is_refused(percentile):
    with pytest.raises(ValueError, match="percentile"):
        thresholded(lambda x_t, t: x_t, percentile)


def test_the_upsampler_sees_the_level_of_the_noise_and_the_small_picture():
    model, x_t, low = alive(CascadeUpsampler(UPSAMPLER)), torch.randn(1, 3, 32, 32), torch.randn(1, 3, 16, 16)
    t = torch.tensor([500])
    drawn = [model(x_t, t, low, torch.tensor([level])) for level in (0, 100, 101)]
    assert not torch.allclose(drawn[0], drawn[1]) and not torch.allclose(drawn[1], drawn[2])
    assert not torch.allclose(drawn[0], model(x_t, t, low + 0.1, torch.tensor([0])))


def test_a_higher_level_leaves_less_of_the_small_picture():
    low = shrink(World(32).batch(0, 64).images, 2)
    level = torch.arange(0, 1000, 100)
    noised = [DIFFUSION.q_sample(low, torch.full((64,), int(i)), torch.randn(low.shape)) for i in level]
    kept = [float(torch.corrcoef(torch.stack([low.flatten(), x.flatten()]))[0, 1]) for x in noised]
    assert kept[0] > 0.999 and all(a > b for a, b in pairwise(kept)) and kept[-1] < 0.3


@pytest.mark.parametrize("augmentation", [0.0, 0.5])
def test_the_small_picture_is_noised_as_much_as_the_network_is_told(augmentation):
    seen = {}

    class Model:
        config = UPSAMPLER

        def __call__(self, x_t, t, low, level):
            seen.update(low=low, level=level)
            return x_t

    rival = SimpleNamespace(models={"cascade_upsampler": Model()}, diffusion={"cascade_upsampler": DIFFUSION})
    drawn = cascade.upsample(rival, torch.ones(64, 3, 16, 16), generator(), augmentation)
    level = round(augmentation * 999)
    assert drawn.shape == (64, 3, 32, 32) and seen["level"].eq(level).all()
    assert float(seen["low"].mean()) == pytest.approx(float(DIFFUSION.sqrt_alphas_cumprod[level]), abs=0.02)
    assert float(seen["low"].std()) == pytest.approx(float(DIFFUSION.sqrt_one_minus_alphas_cumprod[level]), rel=0.02)


@pytest.mark.parametrize("most", [0.2, 1.0])
def test_the_upsampler_learns_from_small_pictures_of_all_levels_up_to_the_greatest(most):
    batch, seen = World(32).batch(0, 256), {}

    def model(x_t, t, low, level):
        seen.update(low=low, level=level)
        return x_t

    config = replace(cascade.UpsamplerLossConfig(), max_augmentation=most)
    cascade.cascade_upsampler_loss(model, batch, generator(), config, DIFFUSION, 2)
    level, low = seen["level"], shrink(batch.images, 2)
    assert 0 <= level.min() < 50 * most and 950 * most < level.max() < 1000 * most
    signal = DIFFUSION.alphas_cumprod[level].sqrt().view(-1, 1, 1, 1)
    noise = (seen["low"] - signal * low) / (1 - signal**2).sqrt()
    assert abs(float(noise.std()) - 1) < 0.02 and abs(float(noise.mean())) < 0.02


def test_the_base_learns_the_small_picture_with_a_share_of_captions_hidden():
    batch, seen = World(32).batch(0, 256), {}

    def model(x_t, t, tokens, mask, hide):
        seen.update(hide=hide, tokens=tokens)
        return shrink(batch.images, 2) + 0.5

    loss = cascade.cascade_loss(model, batch, generator(), DenoisingLossConfig(0.25, root_below=None), DIFFUSION, 2)
    assert float(loss) == pytest.approx(0.25) and torch.equal(seen["tokens"], batch.tokens)
    assert 0.15 < seen["hide"].float().mean() < 0.35


@pytest.mark.parametrize("power, root", [(1.0, None), (0.5, None), (0.5, 0.01)])
def test_the_loss_draws_timesteps_and_takes_roots_as_its_config_says(power, root):
    x_start, seen = torch.randn(4000, 1, 1, 2), {}

    def predict(x_t, t):
        seen["t"] = t
        return x_start + 0.3

    config = DenoisingLossConfig(timestep_power=power, root_below=root)
    loss = denoising_loss(predict, x_start, generator(), config, DIFFUSION)
    assert float(loss) == pytest.approx(0.09 if root is None else (0.09 + root**2) ** 0.5, rel=1e-4)
    mean = 1000 / (power + 1)  # of T u^power
    assert float(seen["t"].float().mean()) == pytest.approx(mean, rel=0.03)


def test_guidance_of_one_is_none_and_of_nought_forgets_the_caption():
    model, batch = alive(Denoiser(CONFIG)), World(32).batch(0, 3)
    x_t, t = torch.randn(3, 3, 16, 16), torch.full((3,), 700)
    cond = model(x_t, t, batch.tokens, batch.mask)
    uncond = model(x_t, t, batch.tokens, batch.mask, torch.ones(3, dtype=torch.bool))
    assert not torch.allclose(cond, uncond, atol=1e-2)
    for scale, expected in ((1, cond), (0, uncond), (2.5, uncond + 2.5 * (cond - uncond))):
        found = reader(model, batch.tokens, batch.mask, scale)(x_t, t)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_a_hidden_caption_leaves_no_trace_not_even_its_length():
    model, world, hide = alive(Denoiser(CONFIG)), World(32), torch.ones(1, dtype=torch.bool)
    x_t, t = torch.randn(1, 3, 16, 16), torch.tensor([700])
    one, other = (world.batch(step, 1) for step in (0, 3))
    assert one.mask.sum() != other.mask.sum()
    drawn = [model(x_t, t, b.tokens, b.mask, hide) for b in (one, other)]
    torch.testing.assert_close(drawn[0], drawn[1])
    seen = [model(x_t, t, b.tokens, b.mask, ~hide) for b in (one, other)]
    assert not torch.allclose(seen[0], seen[1], atol=1e-2)


def test_padding_does_not_change_a_picture():
    model, batch = alive(Denoiser(CONFIG)), World(32).batch(0, 1)
    x_t, t = torch.randn(1, 3, 16, 16), torch.tensor([700])
    longer = [torch.nn.functional.pad(x, (0, 2)) for x in (batch.tokens, batch.mask)]
    torch.testing.assert_close(model(x_t, t, *longer), model(x_t, t, batch.tokens, batch.mask))


def test_picture_k_of_a_seed_is_the_same_alone_and_in_a_batch(folder):
    rival = Rival.from_pretrained(SMALL, folder, "cpu")
    for model in rival.models.values():
        alive(model)
    both = rival(["a red circle", "a blue ring at the top"], generator=[generator(3), generator(4)]).tensor
    alone = rival("a blue ring at the top", generator=[generator(4)]).tensor
    assert both.shape == (2, 3, 32, 32)
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-4)
    assert not torch.allclose(alone, rival("a blue ring at the top", generator=[generator(5)]).tensor, atol=1e-2)


@pytest.mark.parametrize("option, other", [("guidance_scale", 4), ("percentile", 0), ("augmentation", 0.9)])
def test_every_option_reaches_the_picture(folder, option, other):
    rival = Rival.from_pretrained(SMALL, folder, "cpu")
    for model in rival.models.values():
        alive(model)
    usual = {"guidance_scale": 30, "generator": [generator()]}  # so strong that pictures leave [-1, 1]
    before, after = (
        rival("a red circle", **usual | o).tensor for o in ({}, {option: other, "generator": [generator()]})
    )
    assert not torch.allclose(before, after, atol=1e-3)
    with pytest.raises(ValueError, match=option):
        rival("a red circle", **{option: float("nan")})


def test_an_augmentation_that_is_no_share_is_refused(folder):
    with pytest.raises(ValueError, match=r"augmentation is 2; a share"):
        from_pretrained(folder, "cpu")("a red circle", augmentation=2)


@pytest.mark.parametrize("stage", SMALL.stages)
def test_a_stage_that_is_stopped_goes_on_to_the_same_weights(folder, tmp_path, monkeypatch, stage):
    draw = World.batch

    def batch(world, step, batch_size):
        if (world.seed, step) == (derived_seed(stage, 0), 3):
            signal.raise_signal(signal.SIGINT)
        return draw(world, step, batch_size)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(World, "batch", batch)
        train(SMALL.preset(), "quick", tmp_path, tuple(SMALL.stages))
    assert (tmp_path / f"{stage}.training.safetensors").exists()
    train(SMALL.preset(), "quick", tmp_path, tuple(SMALL.stages), resume=True)
    for kind in SMALL.stages:
        whole, again = (load_model(SMALL.stages[kind].model_class, path)[0].state_dict() for path in (folder, tmp_path))
        assert all(map(torch.equal, whole.values(), again.values()))
        fresh = SMALL.stages[kind].model_class(SMALL.models[kind]).state_dict()
        assert not all(map(torch.equal, whole.values(), fresh.values()))


def test_the_family_keeps_within_its_size():
    models = [stage.model_class(cascade.FAMILY.models[kind]) for kind, stage in cascade.FAMILY.stages.items()]
    assert sum(p.numel() for model in models for p in model.parameters()) <= 1.3e6
    assert isinstance(models[-1], Cascade) and models[-1].config.factor == models[0].config.factor == 2
