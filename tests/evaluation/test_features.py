"""Features: the shipped network names what pictures show, and is the same for everyone."""

import importlib.util
import random
from pathlib import Path

import pytest
import torch

from minidalle.checkpoint import read_header
from minidalle.evaluation import features
from minidalle.evaluation.features import FACTS, FeatureConfig, FeatureNet, answers, feature_net, features_of
from minidalle.evaluation.metrics import frechet_distance
from minidalle.world.render import render
from minidalle.world.scenes import Object, Scene, draw_one, draw_two

FILE = features.folder() / "features.safetensors"


def draw(number: int, seed: str) -> list[Scene]:
    rng = random.Random(seed)
    return [(draw_one, draw_two)[i % 2](rng) for i in range(number)]


def test_the_right_answers_are_those_of_the_scene():
    two = Scene((Object("ring", "pink", "large", -0.5, 0), Object("cross", "red", "small", 0.5, 0)), "grey")
    one = Scene((two.objects[0],), "black")
    said = [{fact: FACTS[fact][index] for fact, index in row.items()} for row in rows(answers([two, one]))]
    assert said[0] == {
        "background": "grey", "color": "pink", "shape": "ring", "size": "large", "second color": "red",
        "second shape": "cross", "second size": "small", "place": None, "relation": "left of",
    }  # fmt: skip
    assert said[1] == said[0] | {
        "background": "black", "second color": None, "second shape": None, "second size": None, "place": "left",
        "relation": None,
    }  # fmt: skip


def rows(columns: dict[str, torch.Tensor]) -> list[dict[str, int]]:
    table = torch.stack(list(columns.values()), dim=1).tolist()
    return [dict(zip(columns, row, strict=True)) for row in table]


def test_the_shipped_network_names_fresh_scenes():
    scenes = draw(400, "fresh")
    logits, right = feature_net()(render(scenes, 32)), answers(scenes)
    assert set(logits) == set(FACTS)
    for fact, found in logits.items():
        assert found.shape == (400, len(FACTS[fact]))
        assert (found.argmax(1) == right[fact]).float().mean() > 0.97, fact


def test_features_are_in_units_of_the_world():
    real = features_of(render(draw(600, "units"), 32))
    assert real.shape == (600, 64) and not real.requires_grad
    assert (real - real.mean(0)).square().sum(1).mean() == pytest.approx(1, abs=0.1)


def test_features_do_not_depend_on_neighbours_and_hardly_on_size(monkeypatch):
    scenes = draw(40, "sizes")
    small, large = (features_of(render(scenes, size)) for size in (32, 64))
    distance = (small[:, None] - large).norm(dim=2)
    assert (distance.argmin(1) == torch.arange(40)).float().mean() > 0.9
    monkeypatch.setattr(features, "CHUNK", 7)
    assert torch.allclose(features_of(render(scenes, 32)), small, atol=1e-5)


def test_a_larger_picture_is_averaged():
    small = render(draw(5, "blocks"), 32)
    checks = 0.3 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(32, 32)  # nothing on average over each block
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3) + checks
    assert torch.allclose(features_of(large), features_of(small), atol=1e-5)


def test_a_world_without_a_shape_lies_farther_than_another_sample():
    real, other, part = (draw(1200, seed) for seed in ("a", "b", "c"))
    part = [scene for scene in part if scene.objects[0].shape != "ring"]
    real, other, part = (features_of(render(scenes, 32)) for scenes in (real, other, part))
    assert frechet_distance(real, part) > 2 * frechet_distance(real, other)


def test_the_file_is_small_and_says_how_it_was_made():
    assert FILE.stat().st_size <= 500_000
    header = read_header(FILE, "features")
    assert set(header["accuracy"]) == {*FACTS, "all"} and min(header["accuracy"].values()) > 0.95
    assert header["seed"] == 0 and header["steps"] > 500


def program():
    """Load the program that trains the network."""
    path = Path(__file__).parents[2] / "tools" / "train_features.py"
    spec = importlib.util.spec_from_file_location("train_features", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_seed_gives_the_same_network(monkeypatch):
    tool = program()
    monkeypatch.setattr(tool, "BATCH_SIZE", 8)
    first, again, other = (tool.train(seed, 2).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_normalizing_changes_the_unit_and_no_answer():
    tool, net, images = program(), FeatureNet(FeatureConfig()), render(draw(50, "unit"), 32)
    before, raw = net(images), net.features(images)
    tool.normalize(net, images)
    after, scaled = net(images), net.features(images)
    assert all(torch.allclose(before[fact], after[fact], atol=1e-4) for fact in before)
    assert (scaled - scaled.mean(0)).square().sum(1).mean().item() == pytest.approx(1, rel=1e-3)
    ratio = raw / scaled
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-2)
