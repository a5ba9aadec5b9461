"""nbgrader's gradebook, for those who use it."""

import contextlib
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from minidalle.course.classroom.grade import Graded
from minidalle.course.classroom.release import checksum, test_cell


def check() -> None:
    """Refuse where nbgrader is not installed.

    Raises: ValueError: with what to do.
    """
    try:
        import nbgrader.api  # noqa: F401
    except ImportError:
        raise ValueError('--gradebook needs nbgrader: pip install "minidalle[grading]", or leave it out.') from None


def write_gradebook(path: Path, results: list[Graded]) -> None:
    """Write all marks into a gradebook; what is in it of the same students and lessons is replaced.

    Args:
        path: of the database.
        results: of all notebooks.
    """
    part = path.with_name(path.name + ".part")
    if path.exists():
        shutil.copyfile(path, part)
    with programs_found(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nbgrader's own, of how it uses its database
        fill(part, results)
    os.replace(part, path)


@contextlib.contextmanager
def programs_found() -> Iterator[None]:
    """Let nbgrader find alembic, which it starts by its bare name, where the environment is not activated."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


def fill(path: Path, results: list[Graded]) -> None:
    """Write the marks into a database."""
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{path}") as book:
        for each in {each.lesson.name: each.lesson for each in results}.values():
            book.update_or_create_assignment(each.name)
            book.update_or_create_notebook(each.name, each.name)
            for exercise in each.exercises:
                where = exercise.test, each.name, each.name
                book.update_or_create_grade_cell(*where, max_score=exercise.points, cell_type="code")
                marks = {
                    "nbgrader": {"grade_id": exercise.test, "grade": True, "solution": False, "points": exercise.points}
                }
                source = test_cell(exercise)
                sums = checksum({"cell_type": "code", "metadata": marks}, source)
                book.update_or_create_source_cell(*where, source=source, cell_type="code", locked=True, checksum=sums)
        for each in results:
            student, name = each.submission.student, each.lesson.name
            book.update_or_create_student(student)
            book.update_or_create_submission(name, student)
            for mark in each.marks:
                grade = book.find_grade(mark.exercise.test, name, name, student)
                grade.auto_score, grade.needs_manual_grade = mark.points, False
        book.db.commit()
