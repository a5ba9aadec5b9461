"""Parts of the whole: conditions that are hidden, embeddings that are made up, the product of abilities."""

import math
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from minidalle import MiniDalle
from minidalle.data.batches import World
from minidalle.edits import conditioned
from minidalle.evaluation.ablations import abilities, arithmetic, draw, one_object, other_ways, product
from minidalle.evaluation.metrics import Rate
from minidalle.losses import DecoderLossConfig, decoder_loss
from minidalle.samplers import SAMPLERS, last
from minidalle.world.render import render
from minidalle.world.scenes import draw_one


@pytest.fixture(scope="module")
def pipe() -> MiniDalle:
    return MiniDalle.from_pretrained("tiny", "cpu")


@pytest.fixture(scope="module")
def asked(pipe):
    scenes, captions = one_object(3, "seen", "test")
    return scenes, pipe.encode(captions), pipe.clip.encode_image(render(scenes)).detach()


def noise(number: int = 3) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(number)]


def test_with_both_conditions_the_pipeline_is_drawn(pipe, asked):
    _, text, z_image = asked
    captions = one_object(3, "seen", "test")[1]
    whole = pipe(captions, z_image=z_image, generator=noise(), rephrase=False).tensor
    assert torch.allclose(draw(pipe, text, z_image, noise()), whole, atol=1e-6)


def test_with_the_caption_hidden_an_edit_is_drawn(pipe, asked):
    _, _, z_image = asked
    start = torch.cat([torch.randn(1, 3, 32, 32, generator=one) for one in noise()])
    steps = SAMPLERS["dpm"](pipe.decoder_diffusion, conditioned(pipe, z_image, None, 2.0), start, 8)
    expected = last(steps).clamp(-1, 1)
    assert torch.allclose(draw(pipe, None, z_image, noise(), guidance_scale=2.0), expected, atol=1e-4)


def test_a_hidden_condition_changes_nothing_whatever_it_says(pipe, asked):
    _, text, z_image = asked
    alone = draw(pipe, text, None, noise())
    other = replace(text, z_text=text.z_text.flip(0))  # the place holder of the hidden z_image
    assert torch.allclose(draw(pipe, other, None, noise()), alone, atol=1e-6)
    assert not torch.allclose(draw(pipe, text, z_image, noise()), alone, atol=0.1)


def test_nothing_at_all_is_refused(pipe):
    with pytest.raises(ValueError, match="Both the caption and z_image are hidden"):
        draw(pipe, None, None)


@given(st.integers(0, 10**9))
def test_a_combination_is_made_of_scenes_that_training_may_show(seed):
    rng = random.Random(seed)
    scene = draw_one(rng)
    colored, shaped, neither = (other.objects[0] for other in other_ways(scene, rng))
    (item,) = scene.objects
    assert colored == replace(item, shape=neither.shape) and shaped == replace(item, color=neither.color)
    assert neither.shape != item.shape and neither.color != item.color
    for other in other_ways(scene, rng):
        assert other.split == "seen" and other.background == scene.background


def test_the_arithmetic_is_of_length_one_and_near_what_it_makes(pipe):
    scenes, _ = one_object(8, "held out", "test")
    made, true = arithmetic(pipe, scenes), pipe.clip.encode_image(render(scenes))
    assert torch.allclose(made.norm(dim=-1), torch.ones(8), atol=1e-5)
    cosines = F.normalize(made, dim=-1) @ true.T
    assert cosines.diag().mean() > cosines.mean() + 0.3


def test_abilities_of_true_pictures_are_whole_and_of_none_are_nothing():
    scenes, _ = one_object(5, "held out", "test")
    assert {rate.share for rate in abilities(scenes, scenes).values()} == {1.0}
    assert {rate.share for rate in abilities(scenes, [None] * 5).values()} == {0.0}
    wrong = [replace(s, background="black" if s.background != "black" else "white") for s in scenes]
    rates = abilities(scenes, wrong)
    assert rates["background"].share == rates["exact"].share == 0 and rates["pair"].share == 1


@given(st.floats(0.2, 1), st.lists(st.floats(0.2, 1), min_size=2, max_size=2), st.integers(0, 99))
def test_attributes_that_fail_by_themselves_are_all_right_as_often_as_the_product_says(readable, shares, seed):
    n, rng = 4000, random.Random(seed)
    drawn = [(rng.random() < readable, *(rng.random() < share for share in shares)) for _ in range(n)]
    hits = {name: sum(d[0] and d[i] for d in drawn) for i, name in ((1, "shape"), (2, "color"))}
    rates = {name: Rate(number, n) for name, number in hits.items()} | {"readable": Rate(sum(d[0] for d in drawn), n)}
    both = sum(all(d) for d in drawn) / n
    assert product(rates, ("shape", "color")) == pytest.approx(both, abs=0.04)
    assert product({name: Rate(0, n) for name in rates}, ("shape", "color")) == 0


def test_a_decoder_can_be_trained_on_the_caption_s_embedding(pipe):
    batch, losses = World(two_objects=0.0).batch(0, 4), {}
    for name in ("z_image", "z_text"):
        config = DecoderLossConfig(embedding=name, p_drop_image=0.0, image_noise=0.0)
        seed = torch.Generator().manual_seed(0)
        losses[name] = float(decoder_loss(pipe.decoder, batch, seed, config, pipe.clip, pipe.decoder_diffusion))

    class Swapped:
        """A CLIP whose pictures are embedded as their captions are."""

        encode_text = pipe.clip.encode_text

        def encode_image(self, images: torch.Tensor) -> torch.Tensor:
            return pipe.clip.encode_text(batch.tokens, batch.mask).z_text

    config = DecoderLossConfig(p_drop_image=0.0, image_noise=0.0)
    seed = torch.Generator().manual_seed(0)
    with torch.no_grad():
        expected = float(decoder_loss(pipe.decoder, batch, seed, config, Swapped(), pipe.decoder_diffusion))
    assert math.isclose(losses["z_text"], expected, rel_tol=1e-5) and losses["z_image"] != losses["z_text"]
