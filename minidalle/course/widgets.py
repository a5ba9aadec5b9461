"""Sliders, menus and a text field over pictures. The only file that imports ipywidgets.

Pictures are made first; a callback only swaps the bytes of one Image, since some versions of JupyterLab run callbacks
on another thread. Only what ipywidgets 7 and 8 both know is used. Beside each widget a notebook shows a static picture,
for pages without a kernel.
"""

import html
from collections.abc import Callable, Mapping

import ipywidgets
from PIL import Image

from minidalle.evaluation.pictures import to_png


def player(frames: list[Image.Image], labels: list[str], name: str = "step") -> ipywidgets.VBox:
    """Show frames behind a slider, with a button that plays them.

    Args:
        frames: ready pictures.
        labels: what is written below each.
        name: of the slider.

    Raises: ValueError: when there are no frames, or not one label for each.
    """
    if not frames or len(labels) != len(frames):
        raise ValueError(f"There are {len(frames)} frames and {len(labels)} labels: give one label for each frame.")
    pngs = [to_png(frame) for frame in frames]
    picture, text = _image(pngs[0]), ipywidgets.HTML(html.escape(labels[0]))
    slider = ipywidgets.IntSlider(0, 0, len(frames) - 1, description=name, readout=False)
    play = ipywidgets.Play(value=0, min=0, max=len(frames) - 1, interval=max(80, 3000 // len(frames)))
    ipywidgets.jslink((play, "value"), (slider, "value"))

    def swap(change: dict) -> None:
        picture.value, text.value = pngs[change["new"]], html.escape(labels[change["new"]])

    slider.observe(swap, "value")
    return ipywidgets.VBox([ipywidgets.HBox([play, slider]), picture, text])


def chooser(pictures: Mapping[tuple, Image.Image], **options: list) -> ipywidgets.VBox:
    """Show the one of many ready pictures that is chosen: numbers by a slider, words from a menu.

    Args:
        pictures: by their keys, tuples with one value for each option, in the order of the options.
        options: the name of each and its values.

    Raises: ValueError: when there are no options, or no picture of the first values.
    """
    menus = []
    for name, values in options.items():
        pairs = [(str(value), value) for value in values]
        numbers = all(isinstance(value, int | float) for value in values)
        kind = ipywidgets.SelectionSlider if numbers and len(values) > 1 else ipywidgets.Dropdown
        menus.append(kind(options=pairs, value=values[0], description=name.replace("_", " ")))
    first = tuple(menu.value for menu in menus)
    if not menus or first not in pictures:
        raise ValueError(f"There is no picture of {first}; each combination of {', '.join(options)} needs one.")
    picture, text = _image(to_png(pictures[first])), ipywidgets.HTML()

    def swap(_: dict) -> None:
        key = tuple(menu.value for menu in menus)
        if key in pictures:
            picture.value, text.value = to_png(pictures[key]), ""
        else:
            text.value = html.escape(f"{', '.join(map(str, key))}: not drawn.")

    for menu in menus:
        menu.observe(swap, "value")
    return ipywidgets.VBox([*menus, picture, text])


def prompt_box(
    draw: Callable[[str], Image.Image],
    value: str = "a red circle",
    button: str = "Draw",
    placeholder: str = "a caption",
) -> ipywidgets.VBox:
    """Ask for a sentence and show the picture that is made of it when the button is pressed.

    Args:
        draw: makes the picture; the message of a ValueError that it raises is shown in the picture's place.
        value: the sentence at first.
        button: what is written on the button.
        placeholder: shown in an empty field.
    """
    field = ipywidgets.Text(value, placeholder=placeholder, layout=ipywidgets.Layout(width="60%"))
    press, picture, text = ipywidgets.Button(description=button), _image(b""), ipywidgets.HTML()
    picture.layout.display = "none"

    def run(_: ipywidgets.Button) -> None:
        press.disabled, text.value = True, "..."
        try:
            picture.value, picture.layout.display, text.value = (
                to_png(draw(field.value)),
                None,
                html.escape(field.value),
            )
        except ValueError as error:
            picture.layout.display, text.value = "none", html.escape(str(error))
        finally:
            press.disabled = False

    press.on_click(run)
    return ipywidgets.VBox([ipywidgets.HBox([field, press]), picture, text])


def _image(png: bytes) -> ipywidgets.Image:
    """Make the widget of a picture that keeps its own size."""
    return ipywidgets.Image(
        value=png, format="png", layout=ipywidgets.Layout(object_fit="none", align_self="flex-start")
    )
