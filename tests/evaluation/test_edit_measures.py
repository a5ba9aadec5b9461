"""The measures of edits: what is asked for is what is counted, and an edit that does nothing or all is seen to."""

import random

import pytest
import torch

from minidalle.evaluation import edits as measures
from minidalle.evaluation.edits import changed, divided, draw_scenes, fact, replaced, shows, stating, told
from minidalle.evaluation.metrics import Rate
from minidalle.world.captions import describe, write
from minidalle.world.render import render
from minidalle.world.scenes import draw_scene


@pytest.fixture
def shipped():
    from minidalle.pipeline import MiniDalle

    return MiniDalle.from_pretrained("tiny", "cpu")


def all_right(rates: dict) -> bool:
    return all(rate.hits == rate.n for rate in rates.values() if isinstance(rate, Rate))


def test_what_is_told_of_a_scene_is_what_its_picture_shows():
    scenes = draw_scenes(20, 0.5, "test")
    assert shows([told(scene) for scene in scenes], render(scenes)) == [True] * 20
    other = draw_scenes(20, 0.5, "another")
    assert sum(shows([told(scene) for scene in scenes], render(other))) <= 1


@pytest.mark.parametrize("attribute", measures.OPTIONS)
def test_one_attribute_is_stated_or_changed_and_no_other(attribute):
    scene = draw_scenes(1, 0.0, "test")[0]
    value = next(option for option in measures.OPTIONS[attribute] if option != fact(scene, attribute))
    before, after = told(scene), changed(told(scene), attribute, value)
    assert stating(value, attribute).num_facts == 1 and value.split()[0] in write(stating(value, attribute))
    assert after != before and changed(after, attribute, fact(scene, attribute)) == before


def test_a_replaced_object_lies_in_the_mask_and_all_else_outside():
    rng = random.Random(0)
    for _ in range(40):
        old, new, mask = replaced(draw_scene(rng, 0.5), rng)
        assert 0 < mask.float().mean() < 1 and new.split == "seen" and old != new
        differs = (render([old]) - render([new])).abs().amax((0, 1)) > 0
        assert differs.any() and not (differs & ~mask).any()


def test_facts_are_divided_so_that_each_side_has_some_and_both_together_all():
    rng = random.Random(0)
    for _ in range(40):
        whole = describe(draw_scene(rng, 0.5), rng, 1.0)
        sides = divided(whole, rng)
        shared = whole.relation is not None
        assert sum(side.num_facts for side in sides) == whole.num_facts + shared
        assert all(side.num_facts > shared for side in sides)


@pytest.mark.parametrize("name", ["inversion", "search", "composing"])
def test_the_shipped_system_edits_and_finds(shipped, name):
    found = measures.MEASURES[name](shipped, 4)
    flat = {a: b for a, value in found.items() for a, b in (value.items() if isinstance(value, dict) else [(a, value)])}
    assert all(rate.n == 4 and rate.hits >= 3 for rate in flat.values() if isinstance(rate, Rate))


def test_edits_that_do_nothing_are_seen_to(shipped, monkeypatch):
    monkeypatch.setattr(measures.edits, "text_diff", lambda pipe, images, *_: images)
    assert measures.text_diffs(shipped, 4)["all"].hits == 0
    monkeypatch.setattr(measures, "inpaint", lambda pipe, images, *_, **__: images)
    found = measures.painting(shipped, 4)
    assert found["followed"].hits == 0 and found["kept"].hits == 4
    monkeypatch.setattr(measures, "inpaint", lambda pipe, images, *_, **__: torch.zeros_like(images))
    assert measures.painting(shipped, 4)["kept"].hits == 0
    monkeypatch.setattr(measures.edits, "variations", lambda pipe, images, *_: images[:, None])
    found = measures.variation(shipped, 6)
    assert found["kept"].hits == 6 and found["pixel difference"] == 0
    assert found["other size"].hits == found["other place"].hits == found["other background"].hits == 0
