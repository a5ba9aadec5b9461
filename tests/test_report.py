"""The report card: known painters get the marks that they deserve."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch

from minidalle import tokenizer
from minidalle.evaluation import report
from minidalle.evaluation.metrics import Rate, frechet_distance, precision_recall
from minidalle.evaluation.report import (
    diversity,
    draw_prompts,
    paint_all,
    report_card,
    retrieval,
    score,
    swapped_colors,
    to_json,
    to_text,
)
from minidalle.world import oracle
from minidalle.world.captions import Description, parse
from minidalle.world.render import render
from minidalle.world.scenes import Scene, draw_one, draw_scene, draw_two

KINDS = [(level, held_out) for level in (0.0, 1.0) for held_out in (False, True)]


def fill(description: Description, rng: random.Random) -> Scene:
    """Draw a scene of which a description is true; what it leaves open is random."""
    said, relation = description.things, description.relation
    if relation in ("below", "right of"):
        said, relation = said[::-1], {"below": "above", "right of": "left of"}[relation]
    while True:
        scene = (draw_one, draw_two)[len(said) - 1](rng)
        sizes = all(s.size in (None, t.size) for s, t in zip(said, scene.things, strict=True))
        if sizes and description.place in (None, scene.place) and relation in (None, scene.relation):
            break
    things = [
        replace(t, shape=s.shape or t.shape, color=s.color or t.color) for s, t in zip(said, scene.things, strict=True)
    ]
    return Scene(tuple(things), description.background or scene.background)


def swap_colors(description: Description) -> Description:
    """Exchange the colours of two things."""
    if len(description.things) == 1:
        return description
    first, second = description.things
    return replace(description, things=(replace(first, color=second.color), replace(second, color=first.color)))


def painter(see: Callable[[Description], Description] = lambda description: description) -> report.Painter:
    """Make a painter that understands prompts, after a change to what they say."""

    def paint(captions: list[str], seed: int) -> torch.Tensor:
        rng = random.Random(seed)
        return render([fill(see(parse(caption)), rng) for caption in captions], 32)

    return paint


def ignore_prompts(captions: list[str], seed: int) -> torch.Tensor:
    rng = random.Random(seed)
    return render([draw_one(rng) for _ in captions], 32)


def marks(paint: report.Painter, two_things: float, held_out: bool = False, n: int = 150):
    """Let a painter paint prompts and read its pictures."""
    asked = draw_prompts(n, two_things, held_out, "test")
    return asked, oracle.read(paint_all(paint, [prompt.caption for prompt in asked]))


@pytest.mark.parametrize(("two_things", "held_out"), KINDS)
def test_a_painter_who_understands_gets_full_marks(two_things, held_out):
    asked, read = marks(painter(), two_things, held_out, n=60)
    rates = score(asked, read)
    assert {name: rate.share for name, rate in rates.items()} == dict.fromkeys(rates, 1.0)
    stated = {"place"} if two_things == 0 else {"relation"}
    assert set(rates) == {"exact", "count", "shape", "color", "size", "background", "readable"} | stated
    assert rates["exact"].n == rates["count"].n == 60 and 0 < rates["size"].n < 60
    assert swapped_colors(asked, read).hits == 0


def test_a_painter_who_does_not_listen_is_at_chance():
    asked, read = marks(ignore_prompts, 0.0, n=300)
    rates = score(asked, read)
    chance = {"shape": 1 / 6, "color": 1 / 8, "size": 1 / 2, "place": 1 / 9, "background": 1 / 3}
    for name, share in chance.items():
        assert rates[name].share == pytest.approx(share, abs=0.1), name
    assert rates["exact"].share < 0.1 and rates["readable"].share == rates["count"].share == 1
    assert score(*marks(ignore_prompts, 1.0, n=40))["count"].hits == 0


def test_a_painter_who_swaps_colors_is_found_out():
    asked, read = marks(painter(swap_colors), 1.0)
    swapped = swapped_colors(asked, read)
    assert swapped.share == 1 and 40 < swapped.n < 150
    differ = [len({thing.color for thing in prompt.description.things}) == 2 for prompt in asked]
    related = [prompt.description.relation is not None for prompt in asked]
    exact = score(asked, read)
    assert exact["exact"].hits <= 150 - swapped.n and exact["relation"].share == exact["shape"].share == 1
    assert swapped.n <= sum(d and r for d, r in zip(differ, related, strict=True))


def test_unreadable_pictures_count_against_everything():
    asked, read = marks(lambda captions, seed: torch.zeros(len(captions), 3, 32, 32), 1.0, n=20)
    assert read == [None] * 20
    assert all(rate.hits == 0 for rate in score(asked, read).values())
    assert swapped_colors(asked, read).hits == 0 < swapped_colors(asked, read).n


def test_only_attributes_that_are_said_are_counted():
    asked = [replace(p, description=parse("a red shape")) for p in draw_prompts(5, 0.0, False, "x")]
    rates = score(asked, [None] * 5)
    assert set(rates) == {"exact", "count", "color", "readable"}
    assert swapped_colors(asked, [None] * 5) == Rate(0, 0)


@pytest.mark.parametrize("two_things", [0.0, 1.0])
def test_held_out_prompts_ask_for_what_training_never_shows(two_things):
    held_out, seen = (draw_prompts(300, two_things, flag, "test") for flag in (True, False))
    assert all(parse(prompt.caption).is_held_out and prompt.scene.is_held_out for prompt in held_out)
    assert not any(parse(prompt.caption).is_held_out or prompt.scene.is_held_out for prompt in seen)
    assert not {prompt.caption for prompt in held_out} & {prompt.caption for prompt in seen}
    assert all(len(prompt.description.things) == 1 + two_things for prompt in held_out + seen)


def test_a_seed_gives_the_same_prompts_and_another_one_others():
    first, again, other = (draw_prompts(50, 0.5, False, seed) for seed in ("a", "a", "b"))
    assert first == again and first != other


@pytest.mark.parametrize(("hits", "n"), [(1, 2), (3, 10), (0, 50), (50, 50), (499, 500), (1, 1)])
def test_intervals_are_wilsons(hits, n):
    z = NormalDist().inv_cdf(0.975)
    low, high = Rate(hits, n).interval
    for end in (low, high):  # the shares from which the one found lies just z standard errors away
        assert abs(hits / n - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), rel=1e-3, abs=1e-9)
    assert 0 <= low <= hits / n <= high <= 1 and high - low > 0


def test_an_interval_known_by_hand():
    assert Rate(5, 10).interval == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_no_trials_have_no_share_and_fit_into_json():
    assert math.isnan(Rate(0, 0).share) and all(map(math.isnan, Rate(0, 0).interval))
    assert Rate(0, 0).to_json() == {"share": None, "low": None, "high": None, "n": 0}
    assert Rate(1, 2).to_json() == {"share": 0.5, "low": 0.0945, "high": 0.9055, "n": 2}


def gaussian(mean: torch.Tensor, std: torch.Tensor, n: int = 400) -> torch.Tensor:
    """Make points with exactly this mean and this diagonal covariance."""
    x = torch.randn(n, len(mean), dtype=torch.float64)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False).T
    return white * std + mean


def test_the_frechet_distance_of_gaussians_has_its_closed_form():
    mean_a, mean_b = torch.tensor([[0.0, 1.0, -2.0], [0.5, 1.0, 1.0]], dtype=torch.float64)
    std_a, std_b = torch.tensor([[1.0, 2.0, 0.5], [3.0, 2.0, 0.1]], dtype=torch.float64)
    a, b = gaussian(mean_a, std_a), gaussian(mean_b, std_b)
    expected = (mean_a - mean_b).square().sum() + (std_a - std_b).square().sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected.item(), rel=1e-6)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(expected.item(), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_precision_and_recall_of_known_sets():
    real = torch.randn(200, 8)
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 100) == (0, 0)
    made = torch.cat([real[:100], real[:100] + 100])
    precision, recall = precision_recall(real, made)
    assert precision == 0.5 and recall >= 0.5
    assert precision_recall(torch.cat([real, real + 100]), real)[0] == 1  # all of it real, half of the real missing
    assert precision_recall(torch.cat([real, real + 100]), real)[1] == 0.5


def test_a_feature_covers_as_far_as_its_third_neighbour():
    real = torch.arange(6.0)[:, None]  # the third neighbour of 0 is 3
    for x, covered in ((-2.9, 1), (-3.1, 0)):
        assert precision_recall(real, torch.tensor([[x]]).repeat(4, 1))[0] == covered


def test_the_world_itself_is_as_diverse_as_the_world():
    rng = random.Random(0)
    found = diversity([draw_one(rng) for _ in range(20_000)])
    assert {name: len(shares) for name, shares in found.items()} == {"place": 9, "size": 2, "background": 3}
    for shares in found.values():
        assert all(share == pytest.approx(1, abs=0.1) for share in shares.values())


def test_a_painter_of_one_picture_is_not_diverse():
    scene = draw_one(random.Random(0))
    for shares, number in zip(diversity([scene] * 10).values(), (9, 2, 3), strict=True):
        assert sorted(shares.values()) == [0] * (number - 1) + [number]
    assert all(share == 0 for share in diversity([None])["place"].values())


def test_retrieval_is_perfect_for_a_clip_that_knows_every_scene(pipe, monkeypatch):
    known = torch.eye(16)
    monkeypatch.setattr(pipe.clip, "encode_image", lambda images: known[: len(images)])
    monkeypatch.setattr(pipe.clip, "encode_text", lambda tokens: (known[: len(tokens)], None))
    found = retrieval(pipe, 16, "test")
    assert found == {"image to text": Rate(16, 16), "text to image": Rate(16, 16), "chance": 1 / 16}
    monkeypatch.setattr(pipe.clip, "encode_image", lambda images: known[: len(images)].roll(1, 0))
    assert retrieval(pipe, 16, "test")["image to text"].hits == 0


def test_scenes_of_the_same_facts_may_be_taken_for_each_other(pipe, monkeypatch):
    numbers = {}

    def embed(things_places_backgrounds) -> torch.Tensor:  # one vector for each set of facts
        facts = [((t.shape, t.color, t.size), place, ground) for (t,), place, ground in things_places_backgrounds]
        return torch.eye(200)[[numbers.setdefault(fact, len(numbers)) for fact in facts]]

    def embed_images(images):
        return embed((s.things, s.place, s.background) for s in oracle.read(images))

    def embed_text(tokens):
        said = [parse(caption) for caption in tokenizer.decode(tokens)]
        return embed((d.things, d.place, d.background) for d in said), None

    monkeypatch.setattr(pipe.clip, "encode_image", embed_images)
    monkeypatch.setattr(pipe.clip, "encode_text", embed_text)
    monkeypatch.setattr(report, "render", lambda scenes, size: render(scenes, 32))  # the oracle reads no 16 pixels
    monkeypatch.setattr(pipe, "two_things", False)
    found = retrieval(pipe, 200, "test")
    assert len(numbers) < 200
    assert found["image to text"] == found["text to image"] == Rate(200, 200)


def test_any_number_of_prompts_is_painted_in_chunks_with_noise_of_their_own(monkeypatch):
    monkeypatch.setattr(report, "CHUNK", 4)
    calls = []

    def paint(captions: list[str], seed: int) -> torch.Tensor:
        calls.append((len(captions), seed))
        return torch.full((len(captions), 3, 16, 16), 0.0)

    assert len(paint_all(paint, ["a red circle"] * 10, seed=7)) == 10
    assert [size for size, _ in calls] == [4, 4, 2] and len({seed for _, seed in calls}) == 3


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_the_card_of_a_run_is_whole_for_people_and_for_programs(pipe):
    card = report_card(pipe, n=4, num_inference_steps=1)
    read = json.loads(to_json(card), parse_constant=refuse)
    kinds = [f"{level}, {which}" for level in ("one thing", "two things") for which in ("seen", "held out")]
    assert list(read["following"]) == kinds
    for kind in kinds:
        assert set(read["following"][kind]["exact"]) == {"share", "low", "high", "n"}
        assert read["following"][kind]["exact"]["n"] == 4
        assert ("swapped colors" in read["following"][kind]) == kind.startswith("two")
    assert set(read) == {"n", "seed", "following", "diversity", "fidelity", "retrieval", "cost"}
    assert read["cost"]["parameters"]["decoder"] == sum(p.numel() for p in pipe.decoder.parameters())
    assert read["retrieval"]["chance"] == 1 / 256 and read["diversity"]["n"] == 4
    text = to_text(card)
    assert all(kind in text for kind in kinds) and "nan" not in text
    for word in ("exact", "background", "swapped colors", "Diversity", "Fréchet", "retrieval@1", "parameters"):
        assert word in text, word
    assert max(map(len, text.splitlines())) < 160


def test_who_never_saw_two_things_is_not_asked_for_them(pipe):
    pipe.two_things = False
    card = report_card(pipe, n=4, num_inference_steps=1)
    assert list(card["following"]) == ["one thing, seen", "one thing, held out"]
    assert "two things" not in to_text(card) and "swapped" not in to_text(card)


def test_a_seed_gives_the_same_card_and_options_reach_the_pipeline(pipe):
    def following(**options) -> dict:
        card = report_card(pipe, n=4, **options)
        return {"fidelity": card["fidelity"], "following": card["following"]}

    plain = following(num_inference_steps=1)
    assert following(num_inference_steps=1) == plain
    assert following(num_inference_steps=2)["fidelity"] != plain["fidelity"]
    assert following(num_inference_steps=1, seed=1)["fidelity"] != plain["fidelity"]


def test_too_few_prompts_are_refused(pipe):
    for n in (3, 0, -1):
        with pytest.raises(ValueError, match=f"^{n} prompts .* need 4 or more"):
            report_card(pipe, n=n)


def test_real_pictures_are_as_good_as_the_floor(pipe):
    asked = draw_prompts(150, 0.5, False, "test")
    rng = random.Random("others")
    real = render([draw_scene(rng, len(prompt.scene.things) - 1) for prompt in asked], 16)
    plain = (2.0 * torch.randint(2, (150, 3, 1, 1)) - 1).expand_as(real)  # of one strong colour each
    good, bad = (report.fidelity(pipe, images, asked) for images in (real, plain))
    assert good["frechet"] < 3 * good["frechet floor"] < bad["frechet"]
    for name in ("precision", "recall"):  # the features are those of a CLIP that has hardly been trained
        assert abs(good[name] - good[f"{name} floor"]) < 0.1 and bad[name] < bad[f"{name} floor"] - 0.2
