"""Widgets: moving a control changes the picture, and nothing is computed or drawn with pyplot meanwhile."""

import base64
import io
import re

import ipywidgets
import pytest
from matplotlib import pyplot
from PIL import Image

from minidalle.course import widgets

RED, GREEN, BLUE = (Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue"))


def parts(widget: ipywidgets.Widget, kind: type) -> list:
    """List the widgets of a kind inside another one."""
    inside = [part for child in getattr(widget, "children", ()) for part in parts(child, kind)]
    return [widget, *inside] if isinstance(widget, kind) else inside


def shown(widget: ipywidgets.Widget) -> tuple[int, int, int]:
    """Read the colour of the picture that is shown."""
    png = re.search('src="data:image/png;base64,([^"]*)"', parts(widget, widgets.Picture)[0].value)[1]
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        return picture.convert("RGB").getpixel((4, 4))


def color(picture: Image.Image) -> tuple[int, int, int]:
    return picture.getpixel((4, 4))


def text(widget: ipywidgets.Widget) -> str:
    return parts(widget, ipywidgets.HTML)[-1].value


@pytest.fixture
def links(monkeypatch):
    """Note which values are linked; the browser keeps them equal, so without one nothing shows."""
    made = []
    monkeypatch.setattr(ipywidgets, "jslink", lambda *ends: made.append(ends))
    return lambda: made


def test_a_player_swaps_frame_and_label(links):
    player = widgets.player([RED, GREEN, BLUE], ["t = 0", "t < 1", "t = 2"], "timestep")
    slider = parts(player, ipywidgets.IntSlider)[0]
    assert (slider.min, slider.max, slider.description) == (0, 2, "timestep")
    assert (shown(player), text(player)) == (color(RED), "t = 0")
    slider.value = 1
    assert (shown(player), text(player)) == (color(GREEN), "t &lt; 1")
    slider.value = 0
    assert shown(player) == color(RED)
    play, (link,) = parts(player, ipywidgets.Play)[0], links()
    assert play.max == 2
    assert link == ((play, "value"), (slider, "value"))  # so that playing moves the slider, which swaps the picture
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize(("frames", "labels"), [([], []), ([RED], []), ([RED], ["a", "b"])])
def test_a_player_needs_one_label_for_each_frame(frames, labels):
    with pytest.raises(ValueError, match="give one label for each frame"):
        widgets.player(frames, labels)


def test_a_chooser_shows_the_chosen_combination():
    pictures = {(1.0, "day"): RED, (2.0, "day"): GREEN, (1.0, "night"): BLUE}
    chooser = widgets.chooser(pictures, guidance_scale=[1.0, 2.0], time=["day", "night"])
    numbers, words = parts(chooser, ipywidgets.SelectionSlider)[0], parts(chooser, ipywidgets.Dropdown)[0]
    assert (numbers.description, words.description) == ("guidance scale", "time")
    assert shown(chooser) == color(RED)
    numbers.value = 2.0
    assert shown(chooser) == color(GREEN)
    words.value = "night"
    assert shown(chooser) == color(GREEN) and "not drawn" in text(chooser)
    numbers.value = 1.0
    assert shown(chooser) == color(BLUE) and text(chooser) == ""


def test_a_chooser_without_its_first_picture_is_refused():
    with pytest.raises(ValueError, match=r"There is no picture of \(1, 2\)"):
        widgets.chooser({(1, 3): RED}, a=[1], b=[2, 3])


def test_a_prompt_box_draws_when_it_is_pressed():
    asked = []

    def draw(prompt: str) -> Image.Image:
        asked.append(prompt)
        if prompt == "<b>":
            raise ValueError('"<b>" is no word')
        return GREEN

    box = widgets.prompt_box(draw, "a disc")
    field, button = parts(box, ipywidgets.Text)[0], parts(box, ipywidgets.Button)[0]
    picture = parts(box, widgets.Picture)[0]
    assert field.value == "a disc" and asked == [] and picture.layout.display == "none"
    button.click()
    assert asked == ["a disc"] and shown(box) == color(GREEN) and picture.layout.display is None
    field.value = "<b>"
    button.click()
    assert "&lt;b&gt;" in text(box) and "no word" in text(box) and picture.layout.display == "none"
    assert not button.disabled
