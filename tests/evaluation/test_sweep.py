"""The guidance sweep: the same prompts and noise at every scale, and each figure is that of the report card."""

import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from painters import fill

from minidalle.evaluation.features import features_of
from minidalle.evaluation.metrics import Rate, fair_evenness
from minidalle.evaluation.report import fidelity
from minidalle.evaluation.sweep import LEFT_OPEN, check_scales, sweep, to_text, variety
from minidalle.evaluation.tables import to_json
from minidalle.world.grammar import parse
from minidalle.world.render import render
from minidalle.world.scenes import Object, Scene, draw_one

N = 12


class Painter:
    """Draws what is asked below a guidance of 2, any one object at 2, and nothing that can be read beyond."""

    image_size = 32

    def __init__(self, two_objects: float = 1.0):
        self.world, self.calls, self.options = {"two_objects": two_objects}, {}, []

    def captions(self, prompts: list[str], rephrase: bool = True) -> list[str]:
        return list(prompts)

    def __call__(self, captions, generator, guidance_scale, rephrase, **options) -> SimpleNamespace:
        seeds = [noise.initial_seed() for noise in generator]
        self.calls.setdefault(guidance_scale, []).extend(zip(captions, seeds, strict=True))
        self.options.append(options)
        return SimpleNamespace(tensor=self.draw(captions, seeds, guidance_scale))

    def draw(self, captions: list[str], seeds: list[int], guidance_scale: float) -> torch.Tensor:
        if guidance_scale > 2:
            return torch.zeros(len(captions), 3, 32, 32)
        noise = map(random.Random, seeds)
        if guidance_scale == 2:
            return render([draw_one(rng) for rng in noise], 32)
        return render([fill(parse(caption), rng) for caption, rng in zip(captions, noise, strict=True)], 32)


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter()


@pytest.fixture(scope="module")
def found(painter) -> dict:
    return sweep(painter, [3, 1, 2], N, seed=5, num_inference_steps=7)


def test_every_scale_is_asked_the_same_with_the_same_noise(painter, found):
    assert [point["guidance_scale"] for point in found["points"]] == list(painter.calls) == [1, 2, 3]
    first = painter.calls[1]
    assert painter.calls[2] == painter.calls[3] == first and len({seed for _, seed in first}) == 3 * N
    assert all(options == {"num_inference_steps": 7} for options in painter.options)
    splits = [parse(caption).split for caption, _ in first[: 2 * N]]
    assert splits == ["seen"] * N + ["held out"] * N and {caption for caption, _ in first[2 * N :]} == {found["prompt"]}
    assert {len(parse(caption).objects) for caption, _ in first[: 2 * N]} == {1, 2}


def test_following_is_counted_for_seen_and_held_out(found):
    obeys, ignores, unreadable = found["points"]
    assert obeys["exact"] == {"seen": Rate(N, N), "held out": Rate(N, N)}
    assert ignores["exact"]["seen"].hits < N / 2 and ignores["exact"]["held out"].n == N
    assert unreadable["exact"] == {"seen": Rate(0, N), "held out": Rate(0, N)}


def test_fidelity_is_that_of_the_report_card(painter, found, monkeypatch):
    asked = []
    monkeypatch.setattr("minidalle.evaluation.sweep.real_features", lambda drawn, size: asked.extend(drawn) or (0, 0))
    monkeypatch.setattr("minidalle.evaluation.sweep.distances", lambda *_: {})
    sweep(Painter(), [1, 2], N, seed=5)
    assert {prompt.scene.split for prompt in asked} == {"seen"} and len(asked) == N  # once for all scales
    for point in found["points"]:
        scale = point["guidance_scale"]
        features = features_of(painter.draw(*zip(*painter.calls[scale][:N], strict=True), scale))
        card = fidelity(list(features), asked, 32)
        for name in ("frechet", "precision", "recall"):
            assert point[name] == pytest.approx(card[name], abs=2e-3), name
            assert found["real"][name] == pytest.approx(card[f"{name} floor"], abs=2e-3), name


def test_another_seed_asks_other_prompts_with_other_noise(painter):
    other = Painter()
    sweep(other, [1, 2], N, seed=6)
    for i in (0, 1):
        mine, others = ({pair[i] for pair in asked.calls[1]} for asked in (painter, other))
        assert not mine & others if i else mine != others


def test_who_never_saw_two_objects_is_not_asked_for_them():
    single = Painter(two_objects=0.0)
    sweep(single, [1, 2], 4)
    assert {len(parse(caption).objects) for caption, _ in single.calls[1]} == {1}


def test_seconds_are_those_of_painting(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("minidalle.evaluation.gallery.time.perf_counter", lambda: next(clock))
    (point, *_) = sweep(Painter(), [1, 2], 6)["points"]
    assert point["seconds a picture"] == round(3 / 18, 4)  # three calls, between the two looks of each a second


# Diversity


def at(place: tuple[float, float], size: str = "small", background: str = "grey") -> Scene:
    return Scene((Object("circle", "red", size, *place),), background)


def test_a_picture_over_again_has_no_variety_and_two_have_a_bit():
    center, corner = (0.0, 0.0), (0.52, 0.52)
    assert variety([at(center)] * 9)["evenness"] == 0
    for other in (at(corner), at(center, "large"), at(center, background="black")):
        found = variety([at(center), other] * 10)
        assert found["evenness"] == pytest.approx(math.log(2) / math.log(54), abs=1e-3) and found["n"] == 20


def test_a_fair_painter_lies_in_the_band_of_a_fair_painter():
    rng = random.Random(1)
    for n in (50, 500):
        found = variety([draw_one(rng) for _ in range(n)])
        assert found["fair"][0] <= found["evenness"] <= found["fair"][1]
        assert found["fair"] == [round(end, 3) for end in fair_evenness(n, 54)]
    assert len(LEFT_OPEN) == 54


def test_what_is_not_read_or_shows_two_is_left_out():
    two = Scene((*at((0.0, -0.5)).objects, *at((0.0, 0.5)).objects), "grey")
    one = at((0.0, 0.0))
    assert variety([one, None, two]) == variety([one])
    assert variety([None, two]) == {"evenness": None, "n": 0, "fair": None}


# What makes no sense


@pytest.mark.parametrize(
    ("scales", "said"),
    [
        (["two", 1], "A guidance scale of the sweep is 'two'; a finite number"),
        ([math.nan, 1], "is nan; a finite number"),
        ([1, math.inf], "is inf; a finite number"),
        ([1, True], "is True; a finite number"),
        ([2, -0.5], "is -0.5; 0 or more was expected"),
        ([1, 2, 1.0], "has the guidance scale 1 more than once"),
        ([2], "has 1 of the two or more guidance scales"),
        ([], "has 0 of the two or more"),
    ],
)
def test_scales_that_make_no_sense_are_refused_before_anything_is_drawn(scales, said):
    never = Painter()
    with pytest.raises(ValueError, match=said):
        sweep(never, scales, N)
    assert not never.calls


def test_scales_may_be_numbers_of_any_type():
    assert check_scales([np.float32(2), torch.tensor(0.5), 1]) == [0.5, 1, 2]


def test_too_few_prompts_are_refused():
    with pytest.raises(ValueError, match=r"^3 prompts of each kind .* need 4 or more"):
        sweep(Painter(), [1, 2], 3)


# On paper


def test_a_sweep_has_a_row_for_each_scale_and_one_for_real_pictures(found):
    text = to_text({"one": found, "another": found})
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120 and text.isascii() and "nan" not in text and "None" not in text
    assert text.count("exact, held out") == 2
    rows = lines[lines.index("one") + 2 :][:4]
    assert [row.split()[0] for row in rows] == ["1", "2", "3", "real"]
    obeys = found["points"][0]
    for shown in ("100.0 (75.7-100.0)", f"{obeys['frechet']:.4f}", f"{obeys['diversity']['evenness']:.3f} ("):
        assert shown in rows[0]
    assert rows[2].split()[-2] == "-" and f"{found['real']['frechet']:.4f}" in rows[3]


def test_a_sweep_is_plain_json(found):
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    read = json.loads(to_json(found), parse_constant=refuse)
    assert set(read) == {"n", "seed", "prompt", "real", "points"} and read["n"] == N and read["seed"] == 5
    assert set(read["points"][0]) == {
        "guidance_scale", "exact", "frechet", "precision", "recall", "diversity", "seconds a picture",
    }  # fmt: skip
    assert read["points"][0]["exact"]["held out"] == Rate(N, N).to_json()
