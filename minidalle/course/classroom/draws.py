"""Numbers that a class gets of its own, so that the answers of the public course are not those of the class."""

import random
import re
import tomllib
from dataclasses import replace
from functools import cache
from pathlib import Path

from minidalle.course.classroom.lesson import TITLE, Exercise, Lesson, exercises_of, graded, source_of


@cache
def options() -> dict[str, list[dict[str, str]]]:
    """Read what may be drawn: for each exercise several choices, each with what stands in the place of what."""
    return tomllib.loads(Path(__file__).with_name("draws.toml").read_text(encoding="utf-8"))


def drawn(lesson: Lesson, seed: int | None) -> Lesson:
    """Give a lesson with the numbers that a seed draws; None: the course's own."""
    if seed is None:
        return lesson
    chosen = {e.name: random.Random(f"{seed} {e.name}").choice(options().get(e.name, [{}])) for e in lesson.exercises}
    return with_numbers(lesson, chosen)


def with_numbers(lesson: Lesson, chosen: dict[str, dict[str, str]]) -> Lesson:
    """Put numbers into the question, the solution and the tests of each exercise.

    Args:
        lesson: with the course's own numbers.
        chosen: for each exercise, what stands in the place of what.
    """
    by_id = {name: e for e in lesson.exercises for name in (e.name, e.test)}
    by_title = {e.title: e for e in lesson.exercises}

    def changed(cell: dict) -> dict:
        title = TITLE.search(source_of(cell)) if cell["cell_type"] == "markdown" else None
        exercise: Exercise | None = by_id.get((graded(cell) or {}).get("grade_id"))
        exercise = by_title.get(title[1].strip()) if title else exercise
        swaps = chosen.get(exercise.name, {}) if exercise else {}
        return cell | {"source": swapped(source_of(cell), swaps)} if swaps else cell

    notebook = lesson.notebook | {"cells": [changed(cell) for cell in lesson.notebook["cells"]]}
    return replace(lesson, notebook=notebook, exercises=list(exercises_of(notebook["cells"], lesson.name)))


def swapped(text: str, swaps: dict[str, str]) -> str:
    """Replace whole numbers or wordings, all at once and the longest first."""
    keys = "|".join(re.escape(key) for key in sorted(swaps, key=len, reverse=True))
    return re.sub(rf"(?<![\w.])(?:{keys})(?![\w]|\.\d)", lambda match: swaps[match[0]], text)
