"""Latent diffusion: the autoencoder's loss by torch.distributions, the scale of its latents, and tiny trainings."""

import math
import signal
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from minidalle.checkpoint import CheckpointError, load_model
from minidalle.data.batches import World
from minidalle.diffusion import DiffusionConfig
from minidalle.rivals import latent
from minidalle.rivals.denoiser import DenoisingLossConfig
from minidalle.rivals.family import Rival
from minidalle.rivals.latent import KLAutoencoder, KLAutoencoderConfig, KLAutoencoderLossConfig, Latent, LatentConfig
from minidalle.training.run import train
from minidalle.training.stages import derived_seed

AUTOENCODER = KLAutoencoderConfig(widths=(8, 16))
UNET = replace(latent.UNET, channels=8, emb_dim=16, context_dim=16)
CONFIG = LatentConfig(text_width=16, text_depth=1, num_heads=2, unet=UNET)
SMALL = replace(
    latent.FAMILY,
    models={"kl_autoencoder": AUTOENCODER, "latent": CONFIG},
    recipes={"quick": {k: replace(r, batch_size=4) for k, r in latent.recipes(6, 6, 0.9).items()}},
)
DIFFUSION = DiffusionConfig().build()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def alive(model: torch.nn.Module) -> torch.nn.Module:
    """Give weights to what starts as zero, so that every condition matters."""
    for name, parameter in model.named_parameters():
        if name != "scale":
            torch.nn.init.normal_(parameter, std=0.2)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("latent")
    train(SMALL.preset(), "quick", path, tuple(SMALL.stages))
    return path


@pytest.mark.parametrize("size, widths, cells", [(32, (8, 16), 8), (32, (8, 8, 8), 4), (16, (8, 16), 4)])
def test_a_latent_has_its_size_and_a_picture_comes_back(size, widths, cells):
    model = KLAutoencoder(KLAutoencoderConfig(image_size=size, widths=widths))
    images = World(size).batch(0, 2).images
    mean, log_variance = model.encode(images)
    assert mean.shape == log_variance.shape == (2, 4, cells, cells) and model.config.latent_size == cells
    assert model.decode(mean).shape == images.shape
    drawn, *_ = model(images, torch.zeros_like(mean))
    torch.testing.assert_close(drawn, model.decode(mean))


def test_a_latent_is_the_mean_and_noise_times_the_spread():
    model, images = alive(KLAutoencoder(AUTOENCODER)), World(32).batch(0, 2).images
    mean, log_variance = model.encode(images)
    noise = torch.randn_like(mean)
    torch.testing.assert_close(model(images, noise)[0], model.decode(mean + noise * log_variance.exp().sqrt()))


@pytest.mark.parametrize("kl_weight, root_below", [(1e-4, 0.01), (1.0, 0.3), (1.0, None)])
def test_the_autoencoders_loss_is_that_of_torch_distributions(kl_weight, root_below):
    model, batch = alive(KLAutoencoder(AUTOENCODER)), World(32).batch(0, 4)
    config = KLAutoencoderLossConfig(kl_weight, root_below)
    found = latent.kl_autoencoder_loss(model, batch, generator(3), config)
    mean, log_variance = model.encode(batch.images)
    posterior = Normal(mean, log_variance.exp().sqrt())
    drawn = model.decode(posterior.mean + posterior.stddev * torch.randn(mean.shape, generator=generator(3)))
    errors = [float((a - b).pow(2).mean()) for a, b in zip(drawn, batch.images, strict=True)]
    roots = torch.tensor([math.hypot(math.sqrt(error), root_below or 0.0) for error in errors]).mean()
    error = F.l1_loss(drawn, batch.images) if root_below is None else roots
    torch.testing.assert_close(found, error + kl_weight * kl_divergence(posterior, Normal(0.0, 1.0)).mean())


def test_the_scale_brings_latents_to_unit_variance():
    autoencoder, model, world = alive(KLAutoencoder(AUTOENCODER)), Latent(CONFIG), World(32, seed=5)
    assert float(model.scale) == 1
    latent.fit_scale(model, world, autoencoder)
    latents = model.scale * autoencoder.encode(World(32, seed=6).batch(0, 1024).images)[0]
    assert float(latents.std()) == pytest.approx(1, rel=0.02)


def test_the_scale_is_kept_and_never_trained(folder):
    (model, _), (autoencoder, _) = (load_model(m, folder) for m in (Latent, KLAutoencoder))
    fresh = Latent(CONFIG)
    latent.fit_scale(fresh, World(32, derived_seed("latent", 0), 0.0), autoencoder)
    torch.testing.assert_close(model.scale, fresh.scale)
    assert float(model.scale) != 1 and not fresh.scale.requires_grad


def test_the_diffusion_learns_scaled_draws_of_the_latents():
    autoencoder, model, batch = alive(KLAutoencoder(AUTOENCODER)), Latent(CONFIG), World(32).batch(0, 64)
    model.scale.fill_(3.0)
    mean, log_variance = autoencoder.encode(batch.images)
    seen = {}

    def forward(x_t, t, tokens, mask, hide=None):
        seen.update(tokens=tokens, mask=mask, hide=hide)
        return 3 * mean

    model.forward = forward
    config = DenoisingLossConfig(p_drop_text=0.5, root_below=None)
    loss = latent.latent_loss(model, batch, generator(), config, autoencoder, DIFFUSION)
    assert float(loss) == pytest.approx(9 * float(log_variance.exp().mean()), rel=0.05)  # what the mean leaves open
    assert torch.equal(seen["tokens"], batch.tokens) and 10 < seen["hide"].sum() < 54


def test_the_autoencoder_stays_as_it_is_while_the_diffusion_learns():
    autoencoder, model, batch = KLAutoencoder(AUTOENCODER), Latent(CONFIG), World(32).batch(0, 4)
    latent.latent_loss(model, batch, generator(), DenoisingLossConfig(), autoencoder, DIFFUSION).backward()
    assert all(p.grad is None for p in autoencoder.parameters())
    assert model.unet.conv_out.weight.grad.abs().sum() > 0


def test_what_is_drawn_is_decoded_from_a_latent_of_the_autoencoders_own_scale(folder, monkeypatch):
    rival, seen = Rival.from_pretrained(SMALL, folder, "cpu"), {}
    scale = float(rival.models["latent"].scale)
    monkeypatch.setattr(latent, "reader", lambda *_: lambda x_t, t: torch.full_like(x_t, 2.0))
    decode = rival.models["kl_autoencoder"].decode
    monkeypatch.setattr(rival.models["kl_autoencoder"], "decode", lambda z: decode(seen.setdefault("z", z)))
    rival("a red circle")
    torch.testing.assert_close(seen["z"], torch.full((1, 4, 8, 8), 2 / scale))  # not clipped to [-1, 1]


def test_picture_k_of_a_seed_is_the_same_alone_and_in_a_batch(folder):
    rival = Rival.from_pretrained(SMALL, folder, "cpu")
    for model in rival.models.values():
        alive(model)
    both = rival(["a red circle", "a blue ring at the top"], generator=[generator(3), generator(4)]).tensor
    alone = rival("a blue ring at the top", generator=[generator(4)]).tensor
    assert both.shape == (2, 3, 32, 32)
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-4)
    for other in ({"generator": [generator(5)]}, {"generator": [generator(4)], "guidance_scale": 5}):
        assert not torch.allclose(alone, rival("a blue ring at the top", **other).tensor, atol=1e-3)


def test_a_guidance_of_one_asks_the_network_once_a_step_and_more_on_a_doubled_batch(folder):
    rival, sizes = Rival.from_pretrained(SMALL, folder, "cpu"), []
    rival.models["latent"].unet.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    rival("a red circle", num_inference_steps=2, guidance_scale=1)
    rival("a red circle", num_inference_steps=2, guidance_scale=2)
    assert sizes == [1, 1, 2, 2]


@pytest.mark.parametrize("stage", SMALL.stages)
def test_a_stage_that_is_stopped_goes_on_to_the_same_weights(folder, tmp_path, monkeypatch, stage):
    draw = World.batch

    def batch(world, step, batch_size):
        if (world.seed, step, batch_size) == (derived_seed(stage, 0), 3, 4):
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


def test_latents_of_another_autoencoder_are_not_drawn(folder, tmp_path):
    train(SMALL.preset(), "quick", tmp_path, ("kl_autoencoder",), seed=1)
    (tmp_path / "latent.safetensors").write_bytes((folder / "latent.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="trained with another kl_autoencoder"):
        Rival.from_pretrained(SMALL, tmp_path, "cpu")


def test_the_family_keeps_within_its_size():
    models = [stage.model_class(latent.FAMILY.models[kind]) for kind, stage in latent.FAMILY.stages.items()]
    assert sum(p.numel() for model in models for p in model.parameters()) <= 1.2e6
    assert models[1].config.unet.image_size == models[0].config.latent_size == 8
