"""Readers: the one of the scenes, and one of another world on the same card."""

import torch

from minidalle.evaluation.gallery import Gallery
from minidalle.evaluation.metrics import Rate
from minidalle.evaluation.readers import SCENES
from minidalle.evaluation.report import Asked, by_facts, score
from minidalle.world.captions import Description, SaidObject
from minidalle.world.render import render
from minidalle.world.scenes import Object, Scene


def test_scenes_are_read_and_compared_with_what_is_asked():
    scene = Scene((Object("circle", "red", "small", -0.52, -0.52),), "white")
    (reading, nothing) = SCENES.read(torch.cat([render([scene], 32), torch.zeros(1, 3, 32, 32)]))
    assert nothing is None and reading.objects[0].shape == "circle"
    asked = Description((SaidObject("circle", "green", None),), "top left", None, "white")
    assert SCENES.check(asked, reading) == {
        "count": True, "shape": True, "color": False, "place": True, "background": True,
    }  # fmt: skip
    assert set(SCENES.check(asked, nothing).values()) == {False}
    assert set(SCENES.check(asked, nothing)) <= set(SCENES.attributes)


class Brightness:
    """Read how bright a picture is, and nothing else."""

    attributes = ("bright",)

    def read(self, images: torch.Tensor) -> list:
        means = images.mean(dim=(1, 2, 3)).tolist()
        return [None if abs(mean) < 0.1 else mean > 0 for mean in means]

    def check(self, asked: bool, reading: bool | None) -> dict[str, bool]:
        return {"bright": asked is reading}


def test_another_world_is_put_on_the_card_by_its_reader():
    asked = [Asked(caption, caption == "day", None) for caption in ("day", "night", "day", "night")]
    value = {"day": 0.5, "night": 0.7}  # of which night is wrong

    def paint(captions: list[str], seeds: list[int]) -> torch.Tensor:
        values = [value[caption] * (seed > 0) for caption, seed in zip(captions, seeds, strict=True)]
        return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)

    answers = Gallery(paint, Brightness()).show([prompt.caption for prompt in asked], [1, 1, 0, 1])
    rates = score(asked, [answer.reading for answer in answers], Brightness())
    assert rates == {"exact": Rate(1, 4), "bright": Rate(1, 4), "readable": Rate(3, 4)}


def test_a_reader_of_another_world_counts_by_facts_too():
    asked = [Asked("", Description((SaidObject("circle"),)), None)] * 3
    always = type("Always", (Brightness,), {"check": lambda self, asked, reading: {"bright": reading}})()
    assert by_facts(asked, [True, False, True], always)["1"] == Rate(2, 3)
