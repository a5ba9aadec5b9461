"""Every exercise through the grader itself: right answers keep their points, wrong ones lose theirs and no others."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from minidalle.course.classroom import draws
from minidalle.course.classroom.grade import grade_notebook
from minidalle.course.classroom.intake import Submission
from minidalle.course.classroom.lesson import Lesson, graded, read_lesson
from minidalle.course.classroom.release import student_copy
from minidalle.course.classroom.repair import repair
from minidalle.course.classroom.sandbox import Limits
from minidalle.course.classroom.session import Kernel

ROOT = Path(__file__).parents[2]
HEAD = re.compile(r"^=== (\S+) (right|wrong (\d+)): (.+)$", re.MULTILINE)
LESSONS = sorted(path.stem for path in (Path(__file__).parent / "exercises").glob("*.txt"))


@dataclass
class Variant:
    """An answer and what it is worth; None: all points."""

    exercise: str
    words: str
    points: float | None
    source: str


def variants(lesson: str) -> list[Variant]:
    """Read the answers of a lesson: a line says of which exercise, right or wrong with its points, and why."""
    text = (Path(__file__).parent / "exercises" / f"{lesson}.txt").read_text(encoding="utf-8")
    heads = list(HEAD.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    return [
        Variant(head[1], head[4], None if head[2] == "right" else float(head[3]), text[head.end() : end].strip())
        for head, end in zip(heads, ends, strict=True)
    ]


def rounds(lesson: Lesson, told: list[Variant]) -> list[dict[str, Variant]]:
    """Deal the answers out to students: each answers every exercise, so that 230 answers need few processes."""
    by_exercise = {e.name: [v for v in told if v.exercise == e.name] for e in lesson.exercises}
    count = max(len(each) for each in by_exercise.values())
    return [{name: each[i] for name, each in by_exercise.items() if i < len(each)} for i in range(count)]


def with_draws(lesson: Lesson) -> list[Lesson]:
    """Give the lesson with every choice of numbers that a seed may draw."""
    own = {e.name: draws.options()[e.name] for e in lesson.exercises if e.name in draws.options()}
    return [draws.with_numbers(lesson, {name: swaps}) for name, several in own.items() for swaps in several]


def answered(lesson: Lesson, sources: dict[str, str]) -> dict:
    """Fill a student copy in."""
    notebook = student_copy(lesson)
    for cell in notebook["cells"]:
        name = (graded(cell) or {}).get("grade_id")
        if name in sources:
            cell["source"] = sources[name]
    return notebook


def marks(kernel: Kernel, notebook: dict) -> dict:
    """Grade one notebook; gives the mark of each exercise."""
    submission = Submission("somebody", "somebody.ipynb", kernel.lesson.name, notebook)
    result = grade_notebook(kernel, submission, repair(notebook, kernel.lesson), 3, Limits(seconds=30))
    return {mark.exercise.name: mark for mark in result.marks}


@pytest.mark.parametrize("name", LESSONS)
def test_right_answers_get_all_points_and_wrong_ones_what_they_are_worth(name):
    lesson, told = read_lesson(ROOT / "notebooks" / f"{name}.ipynb"), variants(name)
    for exercise in lesson.exercises:
        own = [v for v in told if v.exercise == exercise.name]
        assert sum(v.points is None for v in own) >= 2 and sum(v.points is not None for v in own) >= 3, exercise.name
    faults = []
    with Kernel(lesson, [v.source for v in told]) as kernel:
        solved = marks(kernel, answered(lesson, {e.name: e.solution for e in lesson.exercises}))
        assert all(m.points == m.exercise.points and m.status == "graded" for m in solved.values()), solved
        untouched = marks(kernel, student_copy(lesson))
        assert all(mark.points == 0 for mark in untouched.values())
        for made in with_draws(lesson):
            kernel.lesson = made
            ((old, new),) = [pair for pair in zip(lesson.exercises, made.exercises, strict=True) if pair[0] != pair[1]]
            assert marks(kernel, answered(made, {new.name: new.solution}))[new.name].points == new.points
            assert marks(kernel, answered(made, {new.name: old.solution}))[new.name].points < new.points
        kernel.lesson = lesson
        for chosen in rounds(lesson, told):
            found = marks(kernel, answered(lesson, {name: v.source for name, v in chosen.items()}))
            for exercise in [e for e in lesson.exercises if e.name in chosen]:
                variant, mark = chosen[exercise.name], found[exercise.name]
                expected = exercise.points if variant.points is None else variant.points
                if mark.points != expected or not (mark.reason or mark.points == exercise.points):
                    faults.append((exercise.name, variant.words, expected, mark.points, mark.status, mark.reason))
    assert not faults, "\n".join(map(str, faults))


def chosen_draws() -> list[tuple[str, int]]:
    """List every choice of numbers that a seed may draw."""
    return [(name, i) for name, several in draws.options().items() for i in range(len(several))]


@pytest.mark.parametrize(("name", "i"), chosen_draws(), ids=lambda x: str(x))
def test_numbers_that_are_drawn_stand_in_question_solution_and_tests(name, i):
    (path,) = (ROOT / "notebooks").glob(f"{name[:2]}_*.ipynb")
    lesson = read_lesson(path)
    swaps = draws.options()[name][i]
    made = draws.with_numbers(lesson, {name: swaps})
    old, new = (next(e for e in each.exercises if e.name == name) for each in (lesson, made))
    questions = [
        next(source for cell in each.notebook["cells"] if new.title in (source := "".join(cell["source"])))
        for each in (lesson, made)
    ]
    assert old.solution != new.solution and old.tests != new.tests and questions[0] != questions[1]
    said = questions[0] + old.solution + old.tests
    assert all(draws.swapped(said, {key: value}) != said for key, value in swaps.items())
    others = [[e for e in each.exercises if e.name != name] for each in (lesson, made)]
    assert others[0] == others[1] and lesson.digest != made.digest


def test_a_seed_draws_the_same_numbers_each_time_and_seeds_differ():
    (path,) = (ROOT / "notebooks").glob("05_*.ipynb")
    lesson = read_lesson(path)
    assert draws.drawn(lesson, None) is lesson
    assert draws.drawn(lesson, 3).digest == draws.drawn(lesson, 3).digest
    assert len({draws.drawn(lesson, seed).digest for seed in range(12)}) == 3
