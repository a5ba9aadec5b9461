"""nbgrader's gradebook, for those who use it."""

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
