"""What goes wrong in a callback is seen by the learner, and every picture of a widget has a text beside it."""

import html
import re

import ipywidgets
import pytest
from PIL import Image

from minidalle.course import widgets
from minidalle.course.widgets import Picture

RED, GREEN = (Image.new("RGB", (8, 8), color) for color in ("red", "green"))


def parts(widget: ipywidgets.Widget, kind: type) -> list:
    """List the widgets of a kind inside another one."""
    inside = [part for child in getattr(widget, "children", ()) for part in parts(child, kind)]
    return [widget, *inside] if isinstance(widget, kind) else inside


def text(widget: ipywidgets.Widget) -> str:
    return html.unescape(parts(widget, ipywidgets.HTML)[-1].value)


def alt(widget: ipywidgets.Widget) -> str:
    (picture,) = parts(widget, Picture)
    return html.unescape(re.fullmatch(r'<img src="data:[^"]*" alt="([^"]*)">', picture.value)[1])


class ForeignError(Exception):
    """An error of somebody else's library."""


ERRORS = {
    "a sentence": (ValueError("There is no such word."), "There is no such word."),
    "one of torch's": (RuntimeError("shape\n  mismatch"), "RuntimeError: shape mismatch"),
    "one without words": (MemoryError(), "MemoryError"),
    "a ValueError without words": (ValueError(), "ValueError"),
    "one of a library": (ForeignError("<b>bold</b>"), "ForeignError: <b>bold</b>"),
    "a key": (KeyError("red"), "KeyError: 'red'"),
    "an assertion": (AssertionError("no"), "AssertionError: no"),
    "a stop": (KeyboardInterrupt(), "Stopped."),
}


@pytest.mark.parametrize("name", ERRORS)
def test_any_error_of_a_drawing_is_seen_and_the_button_works_again(name):
    error, said = ERRORS[name]
    answers = [GREEN, error, RED]

    def draw(_: str) -> Image.Image:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    box = widgets.prompt_box(draw)
    (button,), (picture,) = parts(box, ipywidgets.Button), parts(box, Picture)
    button.click()
    before = picture.value
    button.click()
    assert text(box) == said and picture.layout.display == "none" and not button.disabled
    button.click()
    assert text(box) == "a red circle" and picture.layout.display is None and picture.value != before


def test_a_long_error_is_cut():
    def draw(_: str) -> Image.Image:
        raise RuntimeError("word " * 10_000)

    box = widgets.prompt_box(draw)
    parts(box, ipywidgets.Button)[0].click()
    assert text(box).startswith("RuntimeError: word") and len(text(box)) <= 500


@pytest.mark.parametrize("drawn", [None, "a picture", b"png", 3])
def test_what_is_no_picture_is_seen(drawn):
    box = widgets.prompt_box(lambda _: drawn)
    parts(box, ipywidgets.Button)[0].click()
    assert "Error: " in text(box)


def test_errors_of_a_player_and_a_chooser_are_seen(monkeypatch):
    player = widgets.player([RED, GREEN], ["one", "two"])
    chooser = widgets.chooser({(1,): RED, (2,): "no picture"}, scale=[1, 2])
    monkeypatch.setattr(Picture, "show", lambda *_: 1 / 0)
    parts(player, ipywidgets.IntSlider)[0].value = 1
    assert text(player) == "ZeroDivisionError: division by zero"
    parts(chooser, ipywidgets.SelectionSlider)[0].value = 2
    assert text(chooser).startswith("AttributeError: ")


def test_every_picture_says_what_is_seen():
    player = widgets.player([RED, GREEN], ['"t" < 1', "t = 2"])
    assert alt(player) == '"t" < 1'
    parts(player, ipywidgets.IntSlider)[0].value = 1
    assert alt(player) == "t = 2"
    chooser = widgets.chooser({(1, "day"): RED, (2, "day"): GREEN}, guidance_scale=[1, 2], time=["day"])
    assert alt(chooser) == "guidance scale 1, time day"
    parts(chooser, ipywidgets.SelectionSlider)[0].value = 2
    assert alt(chooser) == "guidance scale 2, time day"
    box = widgets.prompt_box(lambda _: RED, 'a "disc"')
    parts(box, ipywidgets.Button)[0].click()
    assert alt(box) == 'a "disc"'
