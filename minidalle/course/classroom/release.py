"""Make student copies of the lessons: without solutions, hidden tests and outputs, and with a place to hand in."""

import copy
import hashlib
import json
import os
import zipfile
from pathlib import Path

from minidalle.checkpoint import own_version
from minidalle.course import session
from minidalle.course.classroom.lesson import (
    BEGIN_HIDDEN,
    BEGIN_SOLUTION,
    END_HIDDEN,
    END_SOLUTION,
    Exercise,
    Lesson,
    check_points,
    clear_hidden,
    graded,
    is_code,
    source_of,
)

CLASS_FILE = "class.json"  # stays with the instructor
UPLOAD = "To work in Google Colab, open colab.research.google.com and upload this file there."
HAND_IN = """## Hand in

Run the whole notebook once more (*Kernel*, *Restart and run all*; in Colab *Runtime*, *Restart and run all*) and see
that no check complains. Save it, keep its name, and hand in this one file. Only the cells of the exercises are graded,
in a fresh copy of this lesson, with these checks and further ones. A cell that you add counts where an answer uses what
it defines."""
NAME = 'STUDENT = ""  # your name or number, where your class asks for it'


def student_copy(lesson: Lesson, colab: str = "", self_study: bool = False) -> dict:
    """Make the notebook that students get.

    Args:
        lesson: with its solutions.
        colab: address of the folder of the copies as Colab opens it; empty: the badge is left out.
        self_study: keep every check, and fold a solution behind each instead of taking it out.
    """
    exercises = {name: e for e in lesson.exercises for name in (e.name, e.test)}
    notebook = copy.deepcopy(lesson.notebook)
    cells = []
    for cell in notebook["cells"]:
        exercise = exercises.get((graded(cell) or {}).get("grade_id"))
        cells.append(student_cell(cell, lesson, exercise, colab, self_study))
        if self_study and exercise and graded(cell)["grade"]:
            cells.append(folded(exercise))
    notebook["cells"] = cells + ([] if self_study else hand_in(lesson))
    stamp = {"lesson": lesson.name, "release": lesson.digest, "version": own_version()}
    notebook["metadata"] = notebook["metadata"] | {"minidalle": stamp}
    return notebook


def student_cell(cell: dict, lesson: Lesson, exercise: Exercise | None, colab: str, self_study: bool) -> dict:
    """Change one cell into that of a student copy."""
    source, marks = source_of(cell), graded(cell)
    if is_code(cell):
        cell |= {"outputs": [], "execution_count": None}
    else:
        badge = session.badge(lesson.name)
        source = source.replace(badge, student_badge(lesson.name, colab)) if badge in source else source
    if exercise and marks["solution"]:
        source = exercise.stub
        cell["metadata"] |= {"deletable": False}
    elif exercise:
        source = test_cell(exercise, self_study)
        cell["metadata"] |= {"deletable": False, "editable": False}
    cell["source"] = source.splitlines(True)
    if exercise:
        marks["checksum"] = checksum(cell, source)
    return cell


def student_badge(name: str, colab: str) -> str:
    """Give the badge that opens the student's copy, or a line where there is no address."""
    if not colab:
        return UPLOAD
    picture = "https://colab.research.google.com/assets/colab-badge.svg"
    return f"[![Open in Colab]({picture})]({colab.rstrip('/')}/{name}/{name}.ipynb)"


def test_cell(exercise: Exercise, self_study: bool = False) -> str:
    """Give the cell that judges as students get it: it says when it has passed."""
    if self_study:
        lines = [x for x in exercise.tests.splitlines() if BEGIN_HIDDEN not in x and END_HIDDEN not in x]
        return "\n".join([*lines, f"print({'Passed: ' + exercise.number!r})"])
    more = " When it is graded, further checks follow." if BEGIN_HIDDEN in exercise.tests else ""
    return f"{clear_hidden(exercise.tests)}\nprint({f'Passed: {exercise.number}.{more}'!r})"


def folded(exercise: Exercise) -> dict:
    """Make the cell that unfolds to a solution."""
    lines = [x for x in exercise.solution.splitlines() if BEGIN_SOLUTION not in x and END_SOLUTION not in x]
    code = "\n".join(lines)
    text = f"<details><summary>A solution of {exercise.title}</summary>\n\n```python\n{code}\n```\n\n</details>"
    return {"cell_type": "markdown", "id": f"{exercise.name}-solution", "metadata": {}, "source": text.splitlines(True)}


def hand_in(lesson: Lesson) -> list[dict]:
    """Make the cells with which a copy ends."""
    text = {"cell_type": "markdown", "id": "hand-in", "metadata": {}, "source": HAND_IN.splitlines(True)}
    code = {"cell_type": "code", "id": "hand-in-name", "metadata": {}, "source": [NAME]}
    return [text, code | {"outputs": [], "execution_count": None}]


def checksum(cell: dict, source: str) -> str:
    """Compute nbgrader's sum of a cell, by which it tells whether a student changed it."""
    marks = graded(cell)
    locked = not marks["solution"] and (marks["grade"] or marks.get("locked", False))
    parts = [source, cell["cell_type"], str(marks["grade"]), str(marks["solution"]), str(locked), marks["grade_id"]]
    parts += [str(float(marks["points"]))] if marks["grade"] else []
    return hashlib.md5("".join(parts).encode(), usedforsecurity=False).hexdigest()


def release(
    lessons: list[Lesson], out: Path, seed: int | None = None, colab: str = "", self_study: bool = False
) -> Path:
    """Write the student copies, one folder and one ZIP for each lesson, and the class's own file beside them.

    Args:
        lessons: as this class has them.
        out: folder of the class.
        seed: with which the numbers of this class were drawn; None: those of the course.
        colab, self_study: as for student_copy.

    Returns: the folder that is handed out.
    Raises: ValueError: when the folder holds the release of another seed, or the points of a lesson do not add up.
    """
    for lesson in lessons:
        check_points(lesson)
    told = {"version": own_version(), "seed": seed, "lessons": {lesson.name: lesson.digest for lesson in lessons}}
    path = out / CLASS_FILE
    before = read_class(out)
    if before and not self_study and before["seed"] != seed:
        has = f"{path} says that this class has seed {before['seed']}, not {seed}"
        raise ValueError(f"{has}: give that one, or another folder with --out.")
    handed = out / ("self-study" if self_study else "release")
    for lesson in lessons:
        text = json.dumps(student_copy(lesson, colab, self_study), indent=1, ensure_ascii=False) + "\n"
        folder = handed / lesson.name
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / f"{lesson.name}.ipynb", text.encode())
        packed(folder.with_suffix(".zip"), f"{lesson.name}/{lesson.name}.ipynb", text)
    if not self_study:
        merged = told | {"lessons": (before or told)["lessons"] | told["lessons"]}
        write(path, (json.dumps(merged, indent=1) + "\n").encode())
    return handed


def read_class(out: Path) -> dict | None:
    """Read the class's own file; None where there is none.

    Raises: ValueError: when it is damaged.
    """
    path = out / CLASS_FILE
    if not path.exists():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return {"version": str(told["version"]), "seed": told["seed"], "lessons": dict(told["lessons"])}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged: put back the file that the release wrote, or release anew.") from None


def packed(path: Path, name: str, text: str) -> None:
    """Write an archive with one notebook, the same bytes each time."""
    part = path.with_name(path.name + ".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(name, (2000, 1, 1, 0, 0, 0)), text, zipfile.ZIP_DEFLATED)
    os.replace(part, path)


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)
