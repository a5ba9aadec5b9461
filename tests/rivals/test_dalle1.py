"""DALL-E, the first: the relaxed codes, what sees what, the cache, drawing, and the choice among candidates."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, Gumbel, MultivariateNormal, Normal, kl_divergence

from minidalle.ar_prior import Cache
from minidalle.checkpoint import load_model
from minidalle.clip import CLIP, CLIPConfig
from minidalle.data.batches import World
from minidalle.rivals import dalle1, dvae
from minidalle.rivals.dalle1 import DALLE1, DALLE1Config, DALLE1LossConfig, dalle1_loss, hide_captions, rerank
from minidalle.rivals.dvae import DiscreteVAE, DiscreteVAEConfig, DiscreteVAELossConfig, dvae_loss, gumbel_softmax
from minidalle.rivals.family import Rival
from minidalle.training.run import train
from minidalle.training.stages import derived_seed
from minidalle.world.captions import TOKENIZER

WORDS = TOKENIZER.vocab_size
SMALL_VAE = DiscreteVAEConfig(num_codes=12, widths=(8, 8, 8))  # a grid of 4 x 4
SMALL = DALLE1Config(WORDS, width=16, depth=2, num_heads=2, num_codes=12, grid=4)
CAPTIONS = ["a red circle", "a large blue ring at the top", "a shape"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Make a model whose every weight matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def model() -> DALLE1:
    return shaken(DALLE1(SMALL))


@pytest.fixture
def codes() -> torch.Tensor:
    return torch.randint(12, (3, 16))


# The discrete VAE


def test_noise_is_gumbels():
    shares = torch.tensor([0.001, 0.3, 0.5, 0.9, 0.999])
    torch.testing.assert_close(dvae.gumbel_noise(shares), Gumbel(0.0, 1.0).icdf(shares), rtol=1e-4, atol=1e-5)
    assert dvae.gumbel_noise(torch.tensor([0.0, 1.0])).isfinite().all()


def test_a_cold_code_is_the_likeliest_after_the_noise_and_a_hot_one_is_any():
    logits, noise = torch.randn(50, 9), dvae.gumbel_noise(torch.rand(50, 9))
    expected = F.one_hot((logits + noise).argmax(-1), 9).float()
    torch.testing.assert_close(gumbel_softmax(logits, noise, 1e-6), expected)
    torch.testing.assert_close(gumbel_softmax(logits, noise, 1e6), torch.full((50, 9), 1 / 9), rtol=0, atol=1e-5)
    torch.testing.assert_close(gumbel_softmax(logits, torch.zeros(50, 9), 1.0), logits.softmax(-1))


def test_codes_are_drawn_as_often_as_the_softmax_says():
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0])
    noise = dvae.gumbel_noise(torch.rand(50_000, 5, generator=generator(1)))
    counts = torch.bincount(gumbel_softmax(logits, noise, 0.1).argmax(-1), minlength=5)
    expected = 50_000 * logits.softmax(-1)
    assert ((counts - expected).square() / expected).sum() < 18.5  # chi-square of 4 degrees of freedom, p = 0.001


@given(st.lists(st.floats(-8, 8), min_size=2, max_size=7))
def test_the_kl_is_that_of_torch(values):
    logits = torch.tensor(values)
    expected = kl_divergence(Categorical(logits=logits), Categorical(logits=torch.zeros_like(logits)))
    torch.testing.assert_close(dvae.kl_to_uniform(logits), expected, rtol=1e-4, atol=1e-5)


def test_the_kl_runs_from_none_to_that_of_a_certain_code():
    assert dvae.kl_to_uniform(torch.zeros(7)) == pytest.approx(0, abs=1e-6)
    assert dvae.kl_to_uniform(1000.0 * F.one_hot(torch.tensor(3), 7)) == pytest.approx(math.log(7))


@pytest.mark.parametrize(
    "progress, temperature, share", [(0.0, 1.0, 0.0), (0.1, 2**-0.5, 0.5), (0.4, 0.25, 1.0), (1.0, 1 / 16, 1.0)]
)
def test_the_loss_is_the_negative_elbo_by_schedule(progress, temperature, share):
    model, batch = shaken(DiscreteVAE(SMALL_VAE)), World(32).batch(0, 4)
    config = DiscreteVAELossConfig(sigma=0.2, kl_weight=3.0, kl_warmup=0.2, hot=1.0, cold=1 / 16, cooling=0.8)
    loss = dvae_loss(model, batch, generator(5), config, progress)
    noise = Gumbel(0.0, 1.0).icdf(torch.rand(4, 16, 12, generator=generator(5)))
    drawn, logits = model(batch.images, noise, temperature)
    kl = kl_divergence(Categorical(logits=logits), Categorical(logits=torch.zeros(12))).sum(1)
    likelihood = Normal(drawn, 0.2).log_prob(batch.images).flatten(1).sum(1)
    torch.testing.assert_close(loss, (3.0 * share * kl - likelihood).mean() / (3 * 32 * 32))
    torch.testing.assert_close(loss, dvae_loss(model, batch, generator(5), config, torch.tensor(progress)))


def test_the_gradient_passes_the_draw():
    model, batch = DiscreteVAE(SMALL_VAE), World(32).batch(0, 2)
    dvae_loss(model, batch, generator(), DiscreteVAELossConfig(kl_weight=0.0), 0.5).backward()
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0


def test_codes_stand_for_what_the_cold_relaxation_draws():
    model, images = shaken(DiscreteVAE(SMALL_VAE)), World(32).batch(0, 3).images
    codes = model.encode(images)
    assert codes.shape == (3, 16) and codes.dtype == torch.int64
    drawn, logits = model(images, torch.zeros(3, 16, 12), 1e-6)
    torch.testing.assert_close(model.decode(codes), drawn)
    assert torch.equal(logits.argmax(-1), codes)


def test_a_code_is_as_likely_as_in_a_mixture_of_gaussians():
    model, images = shaken(DiscreteVAE(SMALL_VAE)), World(32).batch(0, 2).images
    features = model.features(images)
    torch.testing.assert_close(features.square().mean(-1), torch.ones(2, 16), rtol=1e-2, atol=0)
    density = MultivariateNormal(model.codebook, torch.eye(8)).log_prob(features[:, :, None])
    torch.testing.assert_close(model.logits(images).softmax(-1), density.softmax(-1), rtol=1e-3, atol=1e-5)


def test_the_codes_begin_as_features_that_lie_apart():
    model, source = shaken(DiscreteVAE(SMALL_VAE)), World(32, seed=3)
    dvae.start_codebook(model, source)
    first, features = model.codebook.clone(), model.features(source.batch(0, dvae.STARTED).images).flatten(0, 1)
    assert torch.cdist(first, features).amin(1).max() < 1e-2
    dvae.start_codebook(model, source)
    assert torch.equal(model.codebook, first)
    rare = 8.0 * torch.eye(12, 8) - 8.0 * torch.eye(12, 8).roll(8, 0)  # among 4,000 features of one kind
    model.features = lambda images: torch.cat([rare[:, None], torch.zeros(12, 333, 8)], dim=1)
    dvae.start_codebook(model, source)
    assert len(model.codebook.unique(dim=0)) == 12


def test_the_usage_of_a_codebook():
    assert dvae.codebook_usage(torch.tensor([[0, 1], [2, 3]]), 8) == (4, pytest.approx(4.0))
    assert dvae.codebook_usage(torch.tensor([[5, 5], [5, 5]]), 8) == (1, pytest.approx(1.0))


# The transformer


def test_nothing_sees_what_comes_later(model, codes):
    tokens, mask = TOKENIZER.encode(CAPTIONS)
    length, before = tokens.shape[1], model(codes[:, :15], tokens, mask)
    assert before.shape == (3, length + 16, WORDS + 12)
    for at in (0, 7, 14):
        changed = codes.clone()
        changed[:, at] = (changed[:, at] + 1) % 12
        after = model(changed[:, :15], tokens, mask)
        torch.testing.assert_close(after[:, : length + 1 + at], before[:, : length + 1 + at], rtol=0, atol=1e-5)
        assert ((after - before)[:, length + 1 + at :].abs().amax((1, 2)) > 1e-3).all()
    other = tokens.clone()
    other[:, 1] = 9
    after = model(codes[:, :15], other, mask)
    torch.testing.assert_close(after[:, :1], before[:, :1], rtol=0, atol=1e-5)
    assert ((after - before)[:, length:].abs().amax((1, 2)) > 1e-3).all()


def test_a_longer_padding_changes_nothing(model, codes):
    tokens, mask = TOKENIZER.encode(CAPTIONS)
    longer = [F.pad(x, (0, 3)) for x in (tokens, mask)]
    picture = model(codes, *longer)[:, tokens.shape[1] + 3 :]
    torch.testing.assert_close(picture, model(codes, tokens, mask)[:, tokens.shape[1] :], rtol=0, atol=1e-5)


def test_a_hidden_caption_says_nothing_not_even_its_length(model, codes):
    tokens, mask = TOKENIZER.encode(CAPTIONS)
    codes = codes[:1].expand(3, -1)
    tokens, mask = hide_captions(tokens, mask, torch.tensor([True, True, False]))
    empty, _ = TOKENIZER.encode([""])
    assert torch.equal(tokens[:2, :1], empty.expand(2, -1)) and mask.sum(1).tolist() == [1, 1, 3]
    picture = model(codes, tokens, mask)[:, tokens.shape[1] :]
    torch.testing.assert_close(picture[0], picture[1], rtol=0, atol=1e-5)
    assert (picture[0] - picture[2]).abs().max() > 1e-3


def test_a_cache_changes_no_logits(model, codes):
    tokens, mask = TOKENIZER.encode(CAPTIONS)
    whole, cache, rows = model(codes, tokens, mask), Cache(), []
    for n in (0, 1, 2, 5, 16):
        rows.append(model(codes[:, :n], tokens, mask, cache=cache))
    torch.testing.assert_close(torch.cat(rows, dim=1), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_a_cache_changes_no_code(model, guidance_scale):
    tokens, mask = TOKENIZER.encode(CAPTIONS)
    uniform = torch.rand(3, 16)
    with torch.no_grad():
        cached, plain = (model.sample(tokens, mask, uniform, guidance_scale, 0.9, cached=c) for c in (True, False))
    assert torch.equal(cached, plain) and len(cached.unique()) > 2


def test_guidance_and_temperature_shape_the_distribution_that_is_drawn_from(model):
    tokens, mask = (x.expand(20_000, -1) for x in TOKENIZER.encode(CAPTIONS[:1]))
    with torch.no_grad():
        captions = hide_captions(tokens[:2], mask[:2], torch.tensor([False, True]))
        logits = model(torch.empty(2, 0, dtype=torch.int64), *captions)
        cond, uncond = logits[:, -1, WORDS:].log_softmax(-1)
        expected = ((uncond + 1.7 * (cond - uncond)) / 0.8).softmax(-1)
        first = model.sample(tokens, mask, torch.rand(20_000, 1), 1.7, 0.8)[:, 0]
    torch.testing.assert_close(torch.bincount(first, minlength=12) / 20_000, expected, rtol=0, atol=0.015)


def test_the_loss_is_the_weighed_cross_entropy_of_words_and_codes(model):
    vae, batch = shaken(DiscreteVAE(SMALL_VAE)), World(32).batch(0, 4)
    config = DALLE1LossConfig(text_weight=0.25, p_drop_text=0.0)
    loss, codes = dalle1_loss(model, batch, generator(), config, vae), vae.encode(batch.images)
    of_text, of_codes = [], []
    for row in range(4):
        words = batch.tokens[row][batch.mask[row]]
        logits = model(codes[row : row + 1, :-1], words[None], torch.ones(1, len(words)).bool())[0]
        of_text += [-logits[i, :WORDS].log_softmax(-1)[words[i + 1]] for i in range(len(words) - 1)]
        of_codes += [-logits[len(words) + i, WORDS:].log_softmax(-1)[codes[row, i]] for i in range(16)]
    expected = 0.25 * torch.stack(of_text).mean() + 0.75 * torch.stack(of_codes).mean()
    torch.testing.assert_close(loss, expected)


def test_exactness_is_the_share_of_likeliest_codes(model):
    vae, batch = shaken(DiscreteVAE(SMALL_VAE)), World(32).batch(0, 4)
    codes, right = vae.encode(batch.images), 0
    for i in range(16):
        logits = model(codes[:, :i], batch.tokens, batch.mask)[:, -1, WORDS:]
        right += int((logits.argmax(-1) == codes[:, i]).sum())
    assert dalle1.token_exactness(model, vae, batch) == pytest.approx(right / 64)


# Drawing


CLIP_CONFIG = CLIPConfig(WORDS, width=16, image_depth=1, text_depth=1, num_heads=2, embed_dim=8, pool_dim=4)


@pytest.fixture
def rival(model) -> Rival:
    models = {"dvae": shaken(DiscreteVAE(SMALL_VAE)), "dalle1": model}
    return Rival(dalle1.FAMILY, models, TOKENIZER, clip=shaken(CLIP(CLIP_CONFIG)))


def noise(*seeds: int) -> list[torch.Generator]:
    return [generator(seed) for seed in seeds]


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 1.5, "temperature": 0.7}, {"num_candidates": 3}])
def test_a_picture_does_not_depend_on_those_drawn_with_it(rival, options):
    both = rival(CAPTIONS[:2], generator=noise(3, 4), **options).tensor
    alone = rival(CAPTIONS[1], generator=noise(4), **options).tensor
    assert both.shape == (2, 3, 32, 32)
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-4)


@torch.no_grad()
def test_of_several_candidates_the_one_nearest_to_the_caption_is_drawn(rival):
    tokens, mask = TOKENIZER.encode(CAPTIONS)
    images = torch.rand(12, 3, 32, 32) * 2 - 1
    chosen = rerank(rival.clip, images, tokens, mask)
    z_text = rival.clip.encode_text(tokens, mask).z_text
    for row in range(3):
        four = images[4 * row : 4 * row + 4]
        cosines = [float(rival.clip.encode_image(one[None])[0] @ z_text[row]) for one in four]
        assert torch.equal(chosen[row], four[cosines.index(max(cosines))])


@torch.no_grad()
def test_more_candidates_come_nearer(rival):
    tokens, mask = TOKENIZER.encode(CAPTIONS)
    z_text = rival.clip.encode_text(tokens, mask).z_text

    def nearness(number: int) -> torch.Tensor:
        images = rival(CAPTIONS, generator=noise(0, 1, 2), num_candidates=number).tensor
        return (rival.clip.encode_image(images) * z_text).sum(-1).mean()

    assert nearness(16) > nearness(1)


def test_a_choice_without_clip_is_refused_with_what_to_do(rival):
    rival.clip = None
    with pytest.raises(ValueError, match=r"among 4 pictures .* no clip\.safetensors .*minidalle train clip --out"):
        rival(CAPTIONS[0], num_candidates=4)
    rival(CAPTIONS[0], num_candidates=1)


@pytest.mark.parametrize(
    "options, said",
    [({"num_candidates": 0}, "num_candidates is 0"), ({"num_candidates": 1.5}, "num_candidates is 1.5"),
     ({"temperature": 0.0}, "temperature is 0"), ({"guidance_scale": math.nan}, "guidance_scale is nan")],
)  # fmt: skip
def test_options_out_of_range_are_refused(rival, options, said):
    with pytest.raises(ValueError, match=said):
        rival(CAPTIONS[0], **options)


# Training


def test_both_stages_learn_and_go_on_where_they_were_stopped(tmp_path, monkeypatch):
    recipes = {kind: replace(how, steps=8, batch_size=4) for kind, how in dalle1.recipes(8, 8, 0.9).items()}
    family = replace(
        dalle1.FAMILY, models={"dvae": SMALL_VAE, "dalle1": SMALL}, recipes={"quick": recipes, "full": recipes}
    )
    whole, parts, draw = tmp_path / "whole", tmp_path / "parts", World.batch
    train(family.preset(), "quick", whole, tuple(family.stages))
    for kind in family.stages:

        def batch(world, step, size, kind=kind):
            if (world.seed, step) == (derived_seed(kind, 0), 5):
                raise KeyboardInterrupt
            return draw(world, step, size)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("minidalle.training.loop.SaveTimer.due", lambda timer: True)
            patch.setattr(World, "batch", batch)
            train(family.preset(), "quick", parts, tuple(family.stages), resume=True)
    train(family.preset(), "quick", parts, tuple(family.stages), resume=True)
    for stage in family.stages.values():
        first, second = (load_model(stage.model_class, folder)[0] for folder in (whole, parts))
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    drawn = Rival.from_pretrained(family, parts, "cpu")("a red circle", generator=noise(0)).tensor
    assert drawn.shape == (1, 3, 32, 32)
