"""The class as one picture: a field for each student and exercise, with signs, totals and a legend."""

import html
import re
from dataclasses import dataclass, field

from minidalle.course.classroom.lesson import counted

CELL = 30  # pixels of a field
LEFT, TOP, TOTAL = 210, 100, 56  # pixels for the names, for legend and labels, and for the totals
COLUMN, LETTERS = 185, 28  # pixels of an entry of the legend, and letters of a name that are shown
BLUE, ORANGE, GREY, RED, INK = "#0072B2", "#E69F00", "#eeeeee", "#a1260d", "#1a1a1a"
LOST = ("missing", "unreadable")
SIGNS = {"missing": "?", "unreadable": "?", "timed out": "T", "crashed": "!"}
NO_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass
class Drawing:
    """An SVG that grows.

    Args:
        parts: its elements.
    """

    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, said: str, anchor: str = "start", color: str = INK, size: int = 12) -> None:
        """Write a line."""
        where = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{color}" font-size="{size}"'
        self.parts.append(f"<text {where}>{escaped(said)}</text>")

    def box(self, x: float, y: float, width: float, height: float, color: str) -> None:
        """Fill a rectangle."""
        size = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
        self.parts.append(f'<rect {size} fill="{color}"/>')

    def square(self, x: float, y: float, points: float, of: float, sign: str) -> None:
        """Draw a field: filled from below by its share of the points, with its points or a sign in it."""
        side, share = CELL - 2, points / of if of else 1
        self.box(x, y, side, side, GREY)
        if points or not of:
            self.box(x, y + side * (1 - share), side, side * share, BLUE if points == of else ORANGE)
        color = "#ffffff" if points == of and not sign else INK if points else RED
        self.text(x + side / 2, y + side / 2 + 5, sign or f"{points:g}", "middle", color, 16 if sign else 12)


def escaped(text: str) -> str:
    """Write text so that it is valid in XML and in HTML."""
    return html.escape(NO_XML.sub(" ", text))


def untried(mark) -> bool:
    """Tell whether an answer was left as it was handed out."""
    return mark.reason.startswith("Not attempted")


def sign_of(mark) -> str:
    """Give the sign of a mark without points; empty where there are some, or nothing was to be got."""
    if mark.points or not mark.exercise.points:
        return ""
    return SIGNS.get(mark.status) or ("–" if untried(mark) else "×")


def picture(students: list[str], exercises: list, marks: dict) -> str:
    """Draw the class as an SVG that stands alone.

    Args:
        students: a row each.
        exercises: a column each.
        marks: by student and name of the exercise.
    """
    width = max(LEFT + CELL * len(exercises) + TOTAL + 10, 4 * COLUMN + 20)
    height = TOP + CELL * (len(students) + 1) + 10
    drawing = Drawing()
    drawing.box(0, 0, width, height, "#ffffff")
    legend(drawing)
    right = LEFT + CELL * len(exercises)
    for i, e in enumerate(exercises):
        drawing.text(LEFT + CELL * i + CELL / 2 - 1, TOP - 8, e.number or e.name, "middle")
    drawing.text(right + TOTAL, TOP - 8, f"of {sum(e.points for e in exercises):g}", "end")
    for j, student in enumerate(students):
        row(drawing, TOP + CELL * j, student, [(e, marks.get((student, e.name))) for e in exercises])
    below = TOP + CELL * len(students) + 20
    drawing.text(LEFT - 8, below, "mean", "end")
    for i, e in enumerate(exercises):
        got = [mark.points for (_, name), mark in marks.items() if name == e.name]
        drawing.text(LEFT + CELL * i + CELL / 2 - 1, below, f"{sum(got) / max(len(got), 1):.1f}", "middle")
    total = sum(mark.points for mark in marks.values()) / max(len(students), 1)
    drawing.text(right + TOTAL, below, f"{total:.1f}", "end")
    label = f"Marks of {counted(len(students), 'student')} in {counted(len(exercises), 'exercise')}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{label}" viewBox="0 0 {width} {height}"'
    style = f'width="{width}" height="{height}" font-family="system-ui, sans-serif"'
    return f"{head} {style}>{''.join(drawing.parts)}</svg>"


def row(drawing: Drawing, y: float, student: str, own: list[tuple]) -> None:
    """Draw the marks of one student, and their sum; an exercise without a mark stays empty."""
    drawing.parts.append(f'<g data-student="{escaped(student)}">')
    short = student if len(student) <= LETTERS else f"{student[: LETTERS - 1]}…"
    drawing.text(LEFT - 8, y + 18, short, "end")
    for i, (e, mark) in enumerate(own):
        if mark is None:
            continue
        said = f"{student}, {e.title}: {mark.points:g} of {e.points:g}. {mark.reason}"
        drawing.parts.append(f"<g><title>{escaped(said)}</title>")
        drawing.square(LEFT + CELL * i, y, mark.points, e.points, sign_of(mark))
        drawing.parts.append("</g>")
    total = sum(mark.points for _, mark in own if mark is not None)
    drawing.text(LEFT + CELL * len(own) + TOTAL, y + 18, f"{total:g}", "end")
    drawing.parts.append("</g>")


def legend(drawing: Drawing) -> None:
    """Say what the fields mean."""
    entries = [(2, "", "all points"), (1, "", "some points"), (0, "×", "wrong"), (0, "–", "not attempted")]
    entries += [(0, "?", "missing or unreadable"), (0, "T", "timed out"), (0, "!", "ended its process")]
    for i, (points, sign, said) in enumerate(entries):
        x, y = 10 + COLUMN * (i % 4), 6 + 34 * (i // 4)
        drawing.square(x, y, points, 2, sign)
        drawing.text(x + CELL + 4, y + 18, said)
