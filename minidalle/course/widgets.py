"""Sliders, menus and a text field over pictures. The only file that imports ipywidgets.

Pictures are made first; a callback only swaps the bytes of one picture, since some versions of JupyterLab run callbacks
on another thread. Only what ipywidgets 7 and 8 both know is used. Beside each widget a notebook shows a static picture,
for pages without a kernel. Jupyter hides what goes wrong in a callback; here it is said in the widget.
"""

import base64
import html
import textwrap
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
    picture, text = Picture(pngs[0], labels[0]), ipywidgets.HTML(html.escape(labels[0]))
    slider = ipywidgets.IntSlider(0, 0, len(frames) - 1, description=name, readout=False)
    play = ipywidgets.Play(value=0, min=0, max=len(frames) - 1, interval=max(80, 3000 // len(frames)))
    ipywidgets.jslink((play, "value"), (slider, "value"))

    def swap(change: dict) -> None:
        picture.show(pngs[change["new"]], labels[change["new"]])
        text.value = html.escape(labels[change["new"]])

    slider.observe(told(text, swap), "value")
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
    said = ", ".join(name.replace("_", " ") + " {}" for name in options).format
    picture, text = Picture(to_png(pictures[first]), said(*first)), ipywidgets.HTML()

    def swap(_: dict) -> None:
        key = tuple(menu.value for menu in menus)
        if key in pictures:
            picture.show(to_png(pictures[key]), said(*key))
            text.value = ""
        else:
            text.value = html.escape(f"{', '.join(map(str, key))}: not drawn.")

    for menu in menus:
        menu.observe(told(text, swap), "value")
    return ipywidgets.VBox([*menus, picture, text])


def prompt_box(
    draw: Callable[[str], Image.Image],
    value: str = "a red circle",
    button: str = "Draw",
    placeholder: str = "a caption",
) -> ipywidgets.VBox:
    """Ask for a sentence and show the picture that is made of it when the button is pressed.

    Args:
        draw: makes the picture; the message of an error that it raises is shown in the picture's place.
        value: the sentence at first.
        button: what is written on the button.
        placeholder: shown in an empty field.
    """
    field = ipywidgets.Text(value, placeholder=placeholder, layout=ipywidgets.Layout(width="60%"))
    press, picture, text = ipywidgets.Button(description=button), Picture(), ipywidgets.HTML()
    picture.layout.display = "none"

    def run(_: ipywidgets.Button) -> None:
        press.disabled, text.value, display = True, "...", "none"
        try:
            picture.show(to_png(draw(field.value)), field.value)
            text.value, display = html.escape(field.value), None
        finally:
            press.disabled, picture.layout.display = False, display

    press.on_click(told(text, run))
    return ipywidgets.VBox([ipywidgets.HBox([field, press]), picture, text])


def told(text: ipywidgets.HTML, callback: Callable[[object], None]) -> Callable[[object], None]:
    """Wrap a callback so that what it raises is said in the widget, in place of a log that nobody opens."""

    def run(event: object) -> None:
        try:
            callback(event)
        except Exception as error:  # whatever it is, nobody else says it
            message = " ".join(str(error).split())
            known = isinstance(error, ValueError) and message  # ours are sentences
            said = message if known else f"{type(error).__name__}: {message}".removesuffix(": ")
            text.value = html.escape(textwrap.shorten(said, 500, placeholder=" ..."))
        except KeyboardInterrupt:
            text.value = "Stopped."

    return run


class Picture(ipywidgets.HTML):
    """A picture that keeps its own size, with a text for those who do not see it, which ipywidgets' Image cannot carry.

    Args:
        png: a PNG file; empty: nothing is shown.
        alt: what is to be seen.
    """

    def __init__(self, png: bytes = b"", alt: str = ""):
        super().__init__(layout=ipywidgets.Layout(align_self="flex-start"))
        self.show(png, alt)

    def show(self, png: bytes, alt: str) -> None:
        """Show another picture."""
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}" if png else "data:,"
        self.value = f'<img src="{source}" alt="{html.escape(alt)}">'
