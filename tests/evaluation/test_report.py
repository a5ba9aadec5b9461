"""The report card: known painters get the marks that they deserve."""

import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from painters import fill

from minidalle.checkpoint import read_header
from minidalle.cli import main
from minidalle.evaluation import gallery as gallery_module
from minidalle.evaluation import report, tables
from minidalle.evaluation.features import features_of
from minidalle.evaluation.gallery import Gallery, Painter, paint_all, picture_seeds
from minidalle.evaluation.metrics import Rate, frechet_distance, precision_recall
from minidalle.evaluation.report import (
    by_facts,
    by_wording,
    count_calls,
    diversity,
    draw_prompts,
    fidelity,
    measure,
    pipeline_painter,
    report_card,
    retrieval,
    score,
    swapped_colors,
    training_seconds,
    understood_by,
)
from minidalle.evaluation.tables import side_by_side, to_json, to_text
from minidalle.layers import TextEncoding
from minidalle.world import oracle
from minidalle.world.captions import Description, SaidObject, write
from minidalle.world.grammar import parse
from minidalle.world.render import render
from minidalle.world.scenes import Scene, draw_one, draw_scene

KINDS = [(share, split) for share in (0.0, 1.0) for split in ("seen", "held out", "test")]


def swap_colors(description: Description) -> Description:
    """Exchange the colours of two objects."""
    if len(description.objects) == 1:
        return description
    first, second = description.objects
    return replace(description, objects=(replace(first, color=second.color), replace(second, color=first.color)))


def painter(see: Callable[[Description], Description] = lambda description: description) -> Painter:
    """Make a painter that understands prompts, after a change to what they say."""

    def paint(captions: list[str], seeds: list[int]) -> torch.Tensor:
        drawn = zip(captions, seeds, strict=True)
        return render([fill(see(parse(caption)), random.Random(seed)) for caption, seed in drawn], 32)

    return paint


def ignore_prompts(captions: list[str], seeds: list[int]) -> torch.Tensor:
    return render([draw_one(random.Random(seed)) for seed in seeds], 32)


def marks(paint: Painter, two_objects: float, split: str = "seen", n: int = 150):
    """Let a painter paint prompts and read its pictures."""
    asked = draw_prompts(n, two_objects, split, "test")
    return asked, oracle.read(paint_all(paint, [prompt.caption for prompt in asked]))


@pytest.mark.parametrize(("two_objects", "split"), KINDS)
def test_a_painter_who_understands_gets_full_marks(two_objects, split):
    asked, read = marks(painter(), two_objects, split, n=60)
    rates = score(asked, read)
    assert {name: rate.share for name, rate in rates.items()} == dict.fromkeys(rates, 1.0)
    stated = {"place"} if two_objects == 0 else {"relation"}
    assert set(rates) == {"exact", "count", "shape", "color", "size", "background", "readable"} | stated
    assert rates["exact"].n == rates["count"].n == 60 and 0 < rates["size"].n < 60
    assert swapped_colors(asked, read).hits == 0
    assert all(rate.hits == rate.n for rate in by_facts(asked, read).values())


def test_a_painter_who_ignores_prompts_is_at_chance():
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
    differ = [len({item.color for item in prompt.description.objects}) == 2 for prompt in asked]
    related = [prompt.description.relation is not None for prompt in asked]
    exact = score(asked, read)
    assert exact["exact"].hits <= 150 - swapped.n and exact["relation"].share == exact["shape"].share == 1
    assert swapped.n <= sum(d and r for d, r in zip(differ, related, strict=True))


def test_unreadable_pictures_count_against_everything():
    asked, read = marks(lambda captions, seeds: torch.zeros(len(captions), 3, 32, 32), 1.0, n=20)
    assert read == [None] * 20
    assert all(rate.hits == 0 for rate in score(asked, read).values())
    assert swapped_colors(asked, read).hits == 0 < swapped_colors(asked, read).n
    assert sum(rate.n for rate in by_facts(asked, read).values()) <= 20
    assert all(rate.hits == 0 for rate in by_facts(asked, read).values())


def test_only_attributes_that_are_said_are_counted():
    red = Description((SaidObject(None, "red", None),))
    asked = [replace(p, description=red) for p in draw_prompts(5, 0.0, "seen", "x")]
    rates = score(asked, [None] * 5)
    assert set(rates) == {"exact", "count", "color", "readable"}
    assert swapped_colors(asked, [None] * 5) == Rate(0, 0)


def test_facts_are_counted_prompt_by_prompt():
    asked = draw_prompts(200, 0.5, "seen", "facts")
    exact = [prompt.scene if i % 3 else None for i, prompt in enumerate(asked)]
    rates = by_facts(asked, exact)
    assert list(rates) == ["1", "2", "3", "4", "5", "6", "7"]
    for number, rate in rates.items():
        right = [bool(i % 3) for i, prompt in enumerate(asked) if prompt.description.num_facts == int(number)]
        assert rate == Rate(sum(right), len(right))
    assert rates["4"].n > 10


@pytest.mark.parametrize("two_objects", [0.0, 1.0])
def test_prompts_of_a_split_ask_for_what_the_others_never_do(two_objects):
    drawn = {split: draw_prompts(300, two_objects, split, "test") for split in ("seen", "held out", "test")}
    for split, asked in drawn.items():
        assert {prompt.description.split for prompt in asked} == {prompt.scene.split for prompt in asked} == {split}
        assert {write(prompt.description) for prompt in asked}.isdisjoint(
            write(prompt.description) for other in drawn if other != split for prompt in drawn[other]
        )
        assert all(len(prompt.description.objects) == 1 + two_objects for prompt in asked)


def test_a_seed_gives_the_same_prompts_and_another_one_others():
    first, again, other = (draw_prompts(50, 0.5, "seen", seed) for seed in ("a", "a", "b"))
    assert first == again and first != other


def test_the_world_itself_is_as_diverse_as_the_world():
    rng = random.Random(0)
    found = diversity([draw_one(rng) for _ in range(2000)])
    bands = found.pop("chance")
    assert {name: len(shares) for name, shares in found.items()} == {"place": 9, "size": 2, "background": 3}
    for name, shares in found.items():
        assert all(bands[name][0] <= share <= bands[name][1] for share in shares.values()), name
        assert 0.7 < bands[name][0] < 1 < bands[name][1] < 1.3


def test_a_painter_of_one_picture_is_not_diverse():
    scene = draw_one(random.Random(0))
    found = diversity([scene] * 10)
    for name, number in {"place": 9, "size": 2, "background": 3}.items():
        assert sorted(found[name].values()) == [0] * (number - 1) + [number]
    nothing = diversity([None])
    assert all(share == 0 for share in nothing["place"].values()) and nothing["chance"]["place"] == [None, None]


def test_chance_is_that_of_the_pictures_that_were_read():
    scenes = [draw_one(random.Random(seed)) for seed in range(40)]
    assert diversity(scenes + [None] * 500)["chance"] == diversity(scenes)["chance"]


# Painting


def test_every_picture_has_a_seed_of_its_own_whatever_the_chunk(monkeypatch):
    calls = []

    def paint(captions: list[str], seeds: list[int]) -> torch.Tensor:
        calls.append(len(captions))
        return torch.stack([torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    whole = paint_all(paint, ["a red circle"] * 10, seed=7)
    monkeypatch.setattr(gallery_module, "CHUNK", 4)
    assert torch.equal(paint_all(paint, ["a red circle"] * 10, seed=7), whole)
    assert torch.equal(paint_all(paint, ["a red circle"] * 3, seed=7), whole[:3])
    assert calls == [10, 4, 4, 2, 3] and len(set(picture_seeds(10, 7))) == 10
    assert not torch.equal(paint_all(paint, ["a red circle"] * 10, seed=8), whole)


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63), 2**80])
def test_every_seed_gives_seeds_that_torch_takes(seed):
    for number in picture_seeds(100, seed):
        torch.Generator().manual_seed(number)


def test_a_picture_does_not_depend_on_those_painted_with_it(pipe):
    paint = pipeline_painter(pipe, num_inference_steps=2, prior_num_inference_steps=2)
    captions = ["a red circle", "a small blue square on a black background", "a ring"]
    together = paint(captions, [5, 6, 7])
    for i, caption in enumerate(captions):
        assert torch.allclose(paint([caption], [5 + i])[0], together[i], atol=1e-4)
    assert not torch.allclose(paint(captions[:1], [6])[0], together[0], atol=1e-2)


def test_nothing_is_painted_or_read_twice():
    painted = []

    def paint(captions: list[str], seeds: list[int]) -> torch.Tensor:
        painted.extend(zip(captions, seeds, strict=True))
        return ignore_prompts(captions, seeds)

    gallery = Gallery(paint)
    first = gallery.show(["a", "b", "a"], [1, 1, 1])
    again = gallery.show(["a", "a", "b"], [1, 2, 1])
    assert painted == [("a", 1), ("b", 1), ("a", 2)]
    assert first[0] is first[2] is again[0] and again[2] is first[1]
    assert torch.allclose(first[0].features, features_of(ignore_prompts(["a"], [1]))[0], atol=1e-5)
    assert first[0].reading == oracle.read(ignore_prompts(["a"], [1]))[0] and gallery.image_size == 32


def refuse_blue(prompt: str) -> str:
    if "blue" in prompt:
        raise ValueError("No blue here.")
    return prompt.lower()


def test_a_refused_prompt_has_no_picture_and_the_others_keep_their_place():
    gallery = Gallery(painter())
    answers = gallery.ask(
        ["a Blue ring", "a RED ring", "a blue cross", "a green cross"], [1, 2, 3, 4], lambda p: refuse_blue(p.lower())
    )
    assert [answer is None for answer in answers] == [True, False, True, False]
    assert [a.reading.objects[0].color for a in answers if a] == ["red", "green"] and len(gallery.kept) == 2
    assert gallery.ask(["blue"], [1], refuse_blue) == [None]


def test_long_work_says_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(gallery_module, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(gallery_module, "CHUNK", 2)
    Gallery(ignore_prompts, name="mine").show(["a"] * 3, [1, 2, 3])
    Gallery(ignore_prompts).show(["a"], [1])
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert told.out == "" and len(lines) == 2 and re.match(r"mine: 2 pictures painted, [\d.]+ a second", lines[0])


# Wordings


def worded(monkeypatch, understand=None, as_typed=None, paint=None, n=40):
    """Ask by wording, where a paraphrase is the canonical sentence behind a mark."""
    monkeypatch.setattr(report, "paraphrase", lambda description, rng: f"para {write(description)}")
    asked, gallery = draw_prompts(n, 0.0, "seen", "wording"), Gallery(paint or painter())
    rephrase = understand or (lambda prompt: write(parse(prompt.removeprefix("para "))))

    def known(prompt: str) -> str:
        if prompt.startswith("para"):
            raise ValueError("para is not known")
        return prompt

    rows = by_wording(gallery, asked, picture_seeds(n, 0), rephrase, as_typed or known, "w")
    return asked, gallery, rows


def test_a_painter_of_every_wording_loses_nothing(monkeypatch):
    asked, gallery, rows = worded(monkeypatch)
    assert list(rows) == ["canonical", "paraphrased", "training's, as typed", "paraphrased, as typed"]
    for name in ("canonical", "paraphrased", "training's, as typed"):
        assert rows[name] == {"exact": Rate(40, 40), "refused": Rate(0, 40), "lost": Rate(0, 40), "gained": Rate(0, 40)}
    assert rows["paraphrased, as typed"] == {
        "exact": Rate(0, 0), "refused": Rate(40, 40), "lost": Rate(0, 0), "gained": Rate(0, 0),
    }  # fmt: skip
    differ = sum(prompt.caption != write(prompt.description) for prompt in asked)
    assert len(gallery.kept) == 40 + differ  # a paraphrase that is understood is the canonical picture


def test_a_refused_paraphrase_is_a_miss(monkeypatch):
    def rephrase(prompt: str) -> str:
        if prompt.startswith("para") and "red" in prompt:
            raise ValueError("no")
        return write(parse(prompt.removeprefix("para ")))

    asked, _, rows = worded(monkeypatch, rephrase)
    red = sum("red" in write(prompt.description) for prompt in asked)
    assert 0 < red < 40
    assert rows["paraphrased"]["exact"] == Rate(40 - red, 40) and rows["paraphrased"]["refused"] == Rate(red, 40)
    assert rows["paraphrased"]["lost"] == Rate(0, 40 - red)


def test_a_misread_paraphrase_is_lost_beside_the_canonical_wording(monkeypatch):
    def rephrase(prompt: str) -> str:
        said = parse(prompt.removeprefix("para "))
        if prompt.startswith("para"):
            said = replace(said, background="black")
        return write(said)

    asked, _, rows = worded(monkeypatch, rephrase)
    wrong = sum(prompt.description.background in ("white", "grey") for prompt in asked)
    assert 0 < wrong < 40
    assert rows["canonical"]["exact"] == Rate(40, 40) and rows["paraphrased"]["exact"] == Rate(40 - wrong, 40)
    assert rows["paraphrased"]["lost"] == Rate(wrong, 40) and rows["paraphrased"]["gained"] == Rate(0, 40)


def test_words_as_typed_reach_the_painter_and_may_gain(monkeypatch):
    def paint(captions: list[str], seeds: list[int]) -> torch.Tensor:
        typed = [caption.removeprefix("typed ") for caption in captions]
        images = painter()(typed, seeds)
        heard = torch.tensor([caption.startswith("typed") for caption in captions])
        return images * heard.view(-1, 1, 1, 1)  # who is asked canonically is shown an unreadable picture

    _, _, rows = worded(monkeypatch, as_typed=lambda prompt: f"typed {prompt.removeprefix('para ')}", paint=paint)
    assert rows["canonical"]["exact"] == rows["paraphrased"]["exact"] == Rate(0, 40)
    for name in ("training's, as typed", "paraphrased, as typed"):
        assert rows[name] == {
            "exact": Rate(40, 40),
            "refused": Rate(0, 40),
            "lost": Rate(0, 40),
            "gained": Rate(40, 40),
        }


def test_a_pipeline_refuses_as_its_grammar_and_its_tokenizer_do(pipe):
    assert understood_by(pipe)("PLEASE draw a circle that is red") == "a red circle"
    assert understood_by(pipe, rephrase=False)("circle a red") == "circle a red"
    with pytest.raises(ValueError, match="unicorn"):
        understood_by(pipe)("a unicorn")
    with pytest.raises(ValueError, match="please"):
        understood_by(pipe, rephrase=False)("please a red circle")


# Retrieval and fidelity


def test_retrieval_tells_its_two_directions_apart(pipe, monkeypatch):
    # Every picture prefers its own caption, and every caption the first picture
    similarity = torch.eye(16)
    similarity[0] = torch.linspace(9, 8, 16)
    monkeypatch.setattr(pipe.clip, "encode_image", lambda images: similarity)
    monkeypatch.setattr(pipe, "encode", lambda captions: TextEncoding(torch.eye(16), None, None))
    found = retrieval(pipe, 16, "test")
    assert found == {"image to text": Rate(16, 16), "text to image": Rate(1, 16), "chance": 1 / 16}
    monkeypatch.setattr(pipe.clip, "encode_image", lambda images: similarity.T)
    found = retrieval(pipe, 16, "test")
    assert found == {"image to text": Rate(1, 16), "text to image": Rate(16, 16), "chance": 1 / 16}


def test_scenes_of_the_same_facts_may_be_taken_for_each_other(pipe, monkeypatch):
    drawn, numbers = [], {}

    def spy(scenes: list[Scene], size: int) -> torch.Tensor:
        drawn.extend(scenes)
        return render(scenes, size)

    def facts(scene: Scene):
        return *((t.shape, t.color, t.size) for t in scene.objects), scene.place, scene.background

    def encode_image(images: torch.Tensor) -> torch.Tensor:
        return torch.eye(200)[[numbers.setdefault(facts(scene), len(numbers)) for scene in drawn]]

    monkeypatch.setattr(report, "render", spy)
    monkeypatch.setattr(pipe.clip, "encode_image", encode_image)
    monkeypatch.setattr(pipe, "encode", lambda captions: TextEncoding(encode_image(None), None, None))
    monkeypatch.setitem(pipe.world, "two_objects", 0.0)
    # The text side is the picture side here: a caption finds the first of the pictures that show its facts
    monkeypatch.setattr(pipe, "encode", lambda captions: TextEncoding(said(captions), None, None))

    def said(captions: list[str]) -> torch.Tensor:
        keys = []
        for caption in captions:
            d = parse(caption)
            keys.append((*((t.shape, t.color, t.size) for t in d.objects), d.place, d.background))
        return torch.eye(200)[[numbers.setdefault(key, len(numbers)) for key in keys]]

    found = retrieval(pipe, 200, "test")
    assert len(numbers) < 200 and len(drawn) == 200
    assert found["image to text"] == found["text to image"] == Rate(200, 200)


@pytest.mark.parametrize("split", ["held out", "test"])
def test_retrieval_is_asked_of_its_split(pipe, monkeypatch, split):
    drawn = []
    monkeypatch.setattr(report, "render", lambda scenes, size: drawn.extend(scenes) or render(scenes, size))
    retrieval(pipe, 30, "test", split)
    assert {scene.split for scene in drawn} == {split} and {len(scene.objects) for scene in drawn} == {1, 2}


def test_real_pictures_are_as_good_as_the_floor():
    asked = draw_prompts(300, 0.5, "seen", "test")
    rng = random.Random("others")
    real = render([draw_scene(rng, len(prompt.scene.objects) - 1) for prompt in asked], 32)
    plain = (2.0 * torch.randint(2, (300, 3, 1, 1)) - 1).expand_as(real)  # of one strong colour each
    good, bad = (fidelity(list(features_of(images)), asked, 32) for images in (real, plain))
    assert 0 < good["frechet"] < 2 * good["frechet floor"] < bad["frechet"] / 4
    for name in ("precision", "recall"):
        assert abs(good[name] - good[f"{name} floor"]) < 0.1 and bad[name] < 0.3


def test_fidelity_compares_with_fresh_scenes_and_its_floor_does_not_know_the_pictures(monkeypatch):
    asked, drawn = draw_prompts(12, 0.5, "seen", "test"), []
    torch.manual_seed(1)
    cluster = torch.randn(6, 4)
    real = torch.cat([cluster, cluster + 100])
    other = torch.cat([cluster, cluster])  # all of it among the real, half of the real not reached
    answers = iter([real, other] * 2)
    monkeypatch.setattr(report, "render", lambda scenes, size: drawn.append((scenes, size)))
    monkeypatch.setattr(report, "features_of", lambda images: next(answers))
    made = torch.cat([cluster + 100, cluster[:3], cluster[:3] + 1000])
    found, again = fidelity(list(made), asked, 24), fidelity(list(other), asked, 24)
    assert (found["precision floor"], found["recall floor"]) == (1, 0.5)
    assert found["frechet floor"] == round(frechet_distance(real, other), 5) == again["frechet"]
    precision, recall = precision_recall(real, made)
    assert (found["precision"], found["recall"]) == (round(precision, 3), round(recall, 3)) and precision == 0.75
    assert found["frechet"] == round(frechet_distance(real, made), 5) != found["frechet floor"]
    (fresh, size), (own, _) = drawn[:2]
    assert own == [prompt.scene for prompt in asked] and size == 24
    assert not set(fresh) & set(own) and {scene.split for scene in fresh} == {"seen"}
    assert [len(scene.objects) for scene in fresh] == [len(scene.objects) for scene in own]
    assert {len(scene.objects) for scene in fresh} == {1, 2}


def test_too_few_pictures_have_no_fidelity():
    assert fidelity([torch.zeros(64)] * 3, draw_prompts(20, 0.0, "seen", "x"), 32) is None


# The whole card


@pytest.fixture(scope="module")
def card() -> dict:
    """Measure a painter that understands."""
    return measure(painter(), n=12, rephrase=lambda prompt: write(parse(prompt)))


def test_a_perfect_painter_has_a_perfect_card(card):
    kinds = [f"{level}, {split}" for level in ("one object", "two objects") for split in ("seen", "held out")]
    assert list(card["following"]) == kinds and card["split"] == "held out"
    for kind, rates in card["following"].items():
        assert rates["exact"] == Rate(12, 12)
        assert ("swapped colors" in rates) == kind.startswith("two")
    assert sum(rate.n for rate in card["facts"].values()) <= 24 and card["facts"]["3"].n
    assert list(card["wording"]) == ["one object", "two objects"]
    assert card["wording"]["two objects"]["canonical"]["exact"] == Rate(12, 12)
    assert card["diversity"]["n"] == 12 and card["diversity"]["chance"]["place"][0] < 1
    assert card["fidelity"]["precision"] > 0.5


def test_fidelity_is_that_of_seen_pictures(monkeypatch):
    handed = []
    monkeypatch.setattr(report, "fidelity", lambda made, asked, size: handed.append((made, asked, size)))
    measure(painter(), n=6, rephrase=lambda prompt: write(parse(prompt)))
    ((made, asked, size),) = handed
    assert len(made) == len(asked) == 12 and size == 32
    assert {prompt.scene.split for prompt in asked} == {"seen"} and {len(p.scene.objects) for p in asked} == {1, 2}


def captions_of(**options) -> list[list[tuple[str, int]]]:
    """Measure a painter, and give what it was asked, chunk by chunk."""
    asked = []

    def paint(captions: list[str], seeds: list[int]) -> torch.Tensor:
        asked.append(list(zip(captions, seeds, strict=True)))
        return ignore_prompts(captions, seeds)

    measure(paint, n=6, **options)
    return asked


def test_another_seed_asks_other_prompts_with_other_noise():
    first, again, other = captions_of(), captions_of(), captions_of(seed=1)
    assert first == again
    assert [caption for caption, _ in first[0]] != [caption for caption, _ in other[0]]
    seeds = [{seed for chunk in asked for _, seed in chunk} for asked in (first, other)]
    assert seeds[0].isdisjoint(seeds[1])


def scenes_of(monkeypatch, pipe, **options) -> list[Scene]:
    """Make a card, and give every scene that was drawn for it."""
    drawn = []

    def spy(*arguments, **named) -> Scene:
        drawn.append(draw_scene(*arguments, **named))
        return drawn[-1]

    monkeypatch.setattr(report, "draw_scene", spy)
    monkeypatch.setattr(report, "RETRIEVED", 20)
    report_card(pipe, n=4, num_inference_steps=1, prior_num_inference_steps=1, **options)
    return drawn


def test_the_test_split_is_drawn_only_when_it_is_asked_for(pipe, monkeypatch):
    assert {scene.split for scene in scenes_of(monkeypatch, pipe)} == {"seen", "held out"}
    assert {scene.split for scene in scenes_of(monkeypatch, pipe, test=True)} == {"seen", "test"}


def test_the_test_split_is_asked_with_other_prompts_and_noise():
    plain, test = captions_of(), captions_of(test=True)
    seeds = [{seed for chunk in asked for _, seed in chunk} for asked in (plain, test)]
    assert seeds[0].isdisjoint(seeds[1])
    assert plain[0] != test[0] and [caption for caption, _ in plain[0]] != [caption for caption, _ in test[0]]


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_the_card_of_a_run_is_whole_for_people_and_for_programs(pipe, micro_run):
    card = report_card(pipe, n=4, folder=micro_run, num_inference_steps=1, prior_num_inference_steps=3)
    read = json.loads(to_json(card), parse_constant=refuse)
    assert set(read) == {
        "n", "seed", "split", "following", "confusion", "wording", "facts", "diversity", "fidelity", "retrieval",
        "cost",
    }  # fmt: skip
    for rates in read["following"].values():
        assert set(rates["exact"]) == {"share", "low", "high", "n"} and rates["exact"]["n"] == 4
    for wordings in card["wording"].values():  # a paraphrase has words of its own: rephrased it is taken, as typed not
        assert wordings["paraphrased"]["refused"].hits == 0 < wordings["paraphrased, as typed"]["refused"].hits
    cost = read["cost"]
    assert cost["parameters"]["decoder"] == sum(p.numel() for p in pipe.decoder.parameters())
    assert cost["network calls a picture"] == {"text tower": 1, "prior": 3, "decoder": 1}
    assert read["retrieval"]["chance"] == 1 / 256 and read["diversity"]["n"] == 4
    text = to_text(card)
    for word in (
        "exact",
        "background",
        "swapped colors",
        "paraphrased",
        "facts",
        "Diversity",
        "Frechet",
        "retrieval@1",
    ):
        assert word in text, word
    assert "nan" not in text and "None" not in text and "s of training" in text


def test_network_calls_follow_the_options(pipe):
    assert count_calls(pipe, num_inference_steps=3, prior_num_inference_steps=5) == {
        "text tower": 1, "prior": 5, "decoder": 3,
    }  # fmt: skip
    assert not pipe.prior._forward_hooks and not pipe.decoder._forward_hooks


def test_training_seconds_are_those_of_the_headers(micro_run):
    found = training_seconds(micro_run, ("clip", "prior", "decoder"))
    assert set(found) == {"clip", "prior", "decoder"}
    assert found["prior"] == read_header(micro_run / "prior.safetensors", "prior")["seconds"]


def test_who_never_saw_two_objects_is_not_asked_for_them(pipe, monkeypatch):
    monkeypatch.setitem(pipe.world, "two_objects", 0.0)
    card = report_card(pipe, n=4, num_inference_steps=1, prior_num_inference_steps=1)
    assert list(card["following"]) == ["one object, seen", "one object, held out"] and list(card["wording"]) == [
        "one object"
    ]
    assert "two objects" not in to_text(card) and "swapped" not in to_text(card)


def test_a_seed_gives_the_same_card_and_options_reach_the_pipeline(pipe):
    def fidelity_of(**options) -> dict:
        return report_card(pipe, n=4, prior_num_inference_steps=2, **options)["fidelity"]

    plain = fidelity_of(num_inference_steps=1)
    assert fidelity_of(num_inference_steps=1) == plain
    assert fidelity_of(num_inference_steps=2) != plain
    assert fidelity_of(num_inference_steps=1, seed=1) != plain


def test_too_few_prompts_are_refused(pipe):
    for n in (3, 0, -1):
        with pytest.raises(ValueError, match=f"^{n} prompts .* need 4 or more"):
            report_card(pipe, n=n)


# On paper


LONGEST = Rate(9999, 10_000)


def wide(card: dict) -> dict:
    """Fill a card with figures as long as they get."""

    def fill_rates(part):
        return {name: fill_rates(item) for name, item in part.items()} if isinstance(part, dict) else LONGEST

    extra = {
        "retrieval": {"image to text": LONGEST, "text to image": LONGEST, "chance": 1 / 256},
        "cost": {
            "parameters": {"clip": 5e9}, "seconds a picture": 1234.5, "training seconds": {"clip": 1e6},
            "network calls a picture": {"text tower": 1, "prior": 1000, "decoder": 1000},
        },
    }  # fmt: skip
    return card | {name: fill_rates(card[name]) for name in ("following", "wording", "facts")} | extra


@pytest.mark.parametrize("change", [dict, wide])
def test_cards_fit_a_narrow_terminal(card, change):
    full, beside = to_text(change(card)), side_by_side({f"runs/a long name/{i}": change(card) for i in range(5)})
    for text in (full, beside):
        assert max(map(len, text.splitlines())) <= 120
        text.encode("ascii")
        assert tables.NOTE in text
    assert full.count("95 %") >= 3


def test_side_by_side_names_and_figures_stay_together(card):
    worse = json.loads(json.dumps(card, default=Rate.to_json)) | {"following": dict(card["following"])}
    worse = card | {"following": card["following"] | {"one object, seen": {"exact": Rate(3, 12)}}}
    text = side_by_side({"best": card, "worse": worse})
    lines = text.splitlines()
    assert lines[0].split() == ["best", "worse"]
    (row,) = [line for line in lines if line.startswith("exact, one object, seen")]
    assert row.index("100.0") < row.index("25.0")
    end = lines[0].index("worse") + len("worse")
    assert row[:end].endswith(" 12") and lines[0].index("best") + 4 < row.index("25.0")
    lone = {"following": {"one object, seen": card["following"]["one object, seen"]}, "wording": {}}
    lone_text = side_by_side({"best": card, "one": card | lone})
    (row,) = [line for line in lone_text.splitlines() if line.startswith("exact, two objects, seen")]
    assert row.rstrip().endswith("-")


def test_the_card_says_which_split_it_asked(card):
    test = {name.replace("held out", "test"): rates for name, rates in card["following"].items()}
    assert "held-out" in to_text(card) and "test split" not in to_text(card)
    assert "test split" in to_text(card | {"split": "test", "following": test})


def test_the_command_prints_one_card_or_several(micro_run, capsys, tmp_path):
    other, options = shutil.copytree(micro_run, tmp_path / "other"), ["-n", "4", "--steps", "1"]
    assert main(["evaluate", str(micro_run), *options]) == 0
    one = capsys.readouterr().out
    assert "held-out" in one and "one object, held out" in one
    assert main(["evaluate", str(micro_run), str(other), *options, "--test", "--json"]) == 0
    cards = json.loads(capsys.readouterr().out)
    assert list(cards) == [str(micro_run), str(other)]
    mine, same = ({name: part for name, part in card.items() if name != "cost"} for card in cards.values())
    assert mine == same and mine["split"] == "test" and "one object, test" in mine["following"]
    assert main(["evaluate", str(micro_run), str(other), *options]) == 0
    assert "..." in capsys.readouterr().out.splitlines()[0]  # the ends of two long paths


def test_the_command_measures_nothing_when_one_of_several_is_missing(micro_run, capsys, monkeypatch):
    monkeypatch.setattr("minidalle.commands.evaluate.report_card", lambda *a, **b: pytest.fail("measured"))
    assert main(["evaluate", str(micro_run), "nowhere", "-n", "4"]) == 1
    assert '"nowhere" is neither a folder' in capsys.readouterr().err


def test_a_row_of_the_sheet_does_not_depend_on_the_others(pipe, monkeypatch, tmp_path):
    from minidalle import cli
    from minidalle.evaluation import pictures

    sheets = []
    monkeypatch.setattr(pictures, "contact_sheet", lambda rows, title="": sheets.append(dict(rows)))
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: None)
    cli.draw_sheet(pipe, tmp_path / "a.png")
    monkeypatch.setattr(pictures, "SHEET_PROMPTS", pictures.SHEET_PROMPTS[3:5])
    cli.draw_sheet(pipe, tmp_path / "b.png")
    assert len(sheets[0]) == 9 and len(sheets[1]) == 2
    for prompt, images in sheets[1].items():
        assert images.shape[0] == 8 and torch.allclose(images, sheets[0][prompt], atol=1e-4)
        assert not torch.allclose(images[0], images[1], atol=1e-2)
