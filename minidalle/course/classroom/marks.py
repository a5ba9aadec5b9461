"""Write marks: tables for people, for Canvas and for Moodle."""

import contextlib
import csv
import io
from pathlib import Path

from minidalle.course.classroom.grade import Graded, sentence
from minidalle.course.classroom.intake import MISSING, Submission
from minidalle.course.classroom.release import write

MARKS = ("student", "lesson", "exercise", "title", "points", "of", "status", "reason")
MOODLE = ("Identifier", "Full name", "Grade", "Maximum grade", "Feedback comments")
NOTEBOOKS = ("student", "lesson", "points", "of", "status", "late", "notes", "file", "seconds")


def write_tables(folder: Path, results: list[Graded], odd: list[Submission]) -> None:
    """Write every table.

    Args:
        folder: to write into.
        results: of all notebooks.
        odd: what was handed in and belongs to no lesson.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table(folder / "marks.csv", MARKS, [row for each in results for row in mark_rows(each)])
    rows = [notebook_row(each) for each in results]
    rows += [(s.student, "", 0, 0, "unreadable", s.late, sentence(s.fault), s.place, 0) for s in odd]
    table(folder / "notebooks.csv", NOTEBOOKS, rows)
    canvas(folder / "canvas.csv", results)
    lessons = list(dict.fromkeys(each.lesson.name for each in results))
    for lesson in lessons:
        moodle(folder / f"moodle_{lesson}.csv", [each for each in results if each.lesson.name == lesson])
    for path in folder.glob("moodle_*.csv"):  # of an earlier run
        if path.stem.removeprefix("moodle_") not in lessons and path.read_bytes().startswith(",".join(MOODLE).encode()):
            path.unlink()


def dropped(folder: Path, found: list[Submission]) -> dict[str, list[str]]:
    """Find whose marks of an earlier run this one replaces without grading anything of theirs.

    Args:
        folder: with the marks.
        found: what was handed in for this run.

    Returns: by student, the lessons whose marks are lost.
    """
    lost: dict[str, list[str]] = {}
    kept = {(plain(s.student), s.lesson) for s in found if s.fault not in MISSING}
    with (
        contextlib.suppress(OSError, csv.Error, KeyError),
        (folder / "marks.csv").open(encoding="utf-8", errors="replace", newline="") as file,
    ):
        for row in csv.DictReader(file):
            student, lesson = row["student"], row["lesson"]
            if (student, lesson) not in kept and row["status"] != "missing" and lesson not in lost.get(student, []):
                lost.setdefault(student, []).append(lesson)
    return lost


def mark_rows(each: Graded) -> list[tuple]:
    """Give a row for each exercise."""
    who = each.submission.student, each.lesson.name
    return [
        (*who, m.exercise.name, m.exercise.title, number(m.points), number(m.exercise.points), m.status, m.reason)
        for m in each.marks
    ]


def notebook_row(each: Graded) -> tuple:
    """Give the row of a notebook."""
    total = sum(mark.exercise.points for mark in each.marks)
    said = [sentence(each.submission.fault), *each.answers.notes, *each.submission.notes]
    notes = " ".join(note for note in said if note)
    who = each.submission.student, each.lesson.name
    more = each.status, each.submission.late, notes, each.submission.place, round(each.seconds, 1)
    return (*who, number(each.points), number(total), *more)


def canvas(path: Path, results: list[Graded]) -> None:
    """Write what Canvas imports as a gradebook: a column for each lesson, under the second row their points."""
    lessons = list(dict.fromkeys(each.lesson.name for each in sorted(results, key=lambda g: g.lesson.name)))
    totals = {each.lesson.name: number(sum(m.exercise.points for m in each.marks)) for each in results}
    by_student: dict[tuple[str, str], dict[str, float]] = {}
    for each in results:
        key = each.submission.student, each.submission.account
        by_student.setdefault(key, {})[each.lesson.name] = number(each.points)
    head = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section", *lessons)
    possible = ("    Points Possible", "", "", "", "", *(totals[name] for name in lessons))
    rows = [
        (who, account, "", "", "", *(got.get(x, "") for x in lessons)) for (who, account), got in by_student.items()
    ]
    table(path, head, [possible, *rows])


def moodle(path: Path, results: list[Graded]) -> None:
    """Write what Moodle takes as the grading worksheet of one assignment."""
    rows = []
    for each in results:
        identifier = f"Participant {each.submission.account}" if each.submission.account else ""
        total = number(sum(mark.exercise.points for mark in each.marks))
        said = " ".join(f"{m.exercise.title}: {m.reason}" for m in each.marks if m.reason)
        rows.append((identifier, each.submission.student, number(each.points), total, said))
    table(path, MOODLE, rows)


def table(path: Path, head: tuple, rows: list[tuple]) -> None:
    """Write a CSV whose cells no spreadsheet takes for formulas."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([tuple(map(plain, row)) for row in rows])
    write(path, text.getvalue().encode())


def plain(value):
    """Keep text from being a formula, and in one line."""
    if not isinstance(value, str):
        return value
    line = " ".join(value.split()) if value.strip() else value
    line = "    Points Possible" if value == "    Points Possible" else line
    return f"'{line}" if line[:1] in ("=", "+", "-", "@", "\t", "\r") else line


def number(value: float):
    """Give whole numbers without a point."""
    return int(value) if float(value).is_integer() else value
