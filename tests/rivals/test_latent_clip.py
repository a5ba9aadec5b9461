"""Latent diffusion that reads captions by CLIP: what it is conditioned on, and a tiny training of all three stages."""

from dataclasses import replace

import pytest
import torch

from minidalle.clip import CLIP
from minidalle.data.batches import World
from minidalle.diffusion import DiffusionConfig
from minidalle.rivals import from_pretrained, latent, latent_clip
from minidalle.rivals.denoiser import DenoisingLossConfig
from minidalle.rivals.family import Rival
from minidalle.rivals.kl_autoencoder import KLAutoencoder, KLAutoencoderConfig
from minidalle.rivals.latent_clip import FAMILY, LatentClip, LatentClipConfig
from minidalle.tokenizer import Tokenizer
from minidalle.training.recipes import TINY
from minidalle.training.run import train
from minidalle.world.captions import TOKENIZER

SMALL = replace(TINY.models["clip"], vocab_size=TOKENIZER.vocab_size, image_depth=1, text_depth=1)
CONFIG = LatentClipConfig(
    vocab_size=TOKENIZER.vocab_size,
    text_depth=1,
    unet=replace(latent.UNET, channels=8, emb_dim=16, context_dim=16),
)
TINY_FAMILY = replace(
    FAMILY,
    models={"clip": SMALL, "kl_autoencoder": KLAutoencoderConfig(widths=(8, 16)), "latent_clip": CONFIG},
    recipes={
        "quick": {kind: replace(how, steps=3, batch_size=4) for kind, how in FAMILY.recipes["quick"].items()},
        "full": FAMILY.recipes["full"],
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("latent_clip")
    train(TINY_FAMILY.preset(), "quick", path, tuple(FAMILY.stages))
    return path


def test_it_has_no_text_encoder_of_its_own_and_learns_none(folder):
    rival = from_pretrained(folder, "cpu")
    assert rival.clip is rival.models["clip"]  # loaded once
    assert rival.models["latent_clip"].text is None and list(rival.models) == ["clip", "kl_autoencoder", "latent_clip"]
    loss, clip = latent_clip.latent_clip_loss, rival.models["clip"].requires_grad_(True)
    generator, batch = torch.Generator().manual_seed(0), World(two_objects=0.0).batch(0, 4)
    model = rival.models["latent_clip"].train()
    model.unet.requires_grad_(True)
    process = DiffusionConfig().build()
    loss(model, batch, generator, DenoisingLossConfig(), rival.models["kl_autoencoder"], clip, process).backward()
    assert all(p.grad is None for p in clip.parameters()) and any(p.grad is not None for p in model.unet.parameters())


def test_captions_are_those_that_clip_reads():
    torch.manual_seed(0)
    model = LatentClip(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    models = {"clip": CLIP(SMALL), "kl_autoencoder": KLAutoencoder(KLAutoencoderConfig(widths=(8, 16)))}
    rival = Rival(
        FAMILY, models | {"latent_clip": model}, TOKENIZER, diffusion={"latent_clip": DiffusionConfig().build()}
    )
    options = {"num_inference_steps": 2, "rephrase": False}

    def drawn(caption: str) -> torch.Tensor:
        return rival(caption, generator=torch.Generator().manual_seed(0), **options).tensor

    one, other = drawn("a red circle"), drawn("a blue square")
    assert not torch.allclose(one, other)
    tower = rival.models["clip"].text_tower
    tower.register_forward_hook(lambda module, args, out: out.map(lambda x: x * 0 if x.is_floating_point() else x))
    assert torch.equal(drawn("a red circle"), drawn("a blue square"))


def test_all_three_stages_are_trained_kept_and_drawn_with(folder):
    rival = from_pretrained(folder, "cpu")
    assert isinstance(rival.tokenizer, Tokenizer) and rival.tokenizer.words == TOKENIZER.words
    noise = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    both = rival(["a red circle", "a blue square"], generator=noise).tensor
    alone = rival("a blue square", generator=torch.Generator().manual_seed(1)).tensor
    assert both.shape == (2, 3, 32, 32) and torch.allclose(both[1:], alone, atol=1e-5)
