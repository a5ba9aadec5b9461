"""Who handed in nothing: by the class's list of names, however a platform writes them."""

import difflib
import itertools
import re
import unicodedata
from pathlib import Path

from minidalle.course.classroom.intake import NOTHING, Submission

SEPARATORS = re.compile(r"[\s.,_-]+")
MAX_PARTS = 5  # of a name that is tried in every order
ALIKE = 0.8  # share of letters, from which two names may be one that is misspelt


def absent(
    found: list[Submission], roster: Path | None, handed_out: dict
) -> tuple[list[Submission], list[tuple[str, str]]]:
    """List what was not handed in: by students of the roster, or by those who handed in another lesson.

    Args:
        found: what was handed in.
        roster: a text file with a student a line; None: only who handed in something is known.
        handed_out: the lessons of the release; only those that somebody handed in count.

    Returns: what is missing, and near misses: a name of the roster beside a student who may be meant.
    Raises: ValueError: when the roster is no file.
    """
    students = sorted({s.student for s in found} - {""})
    names = read_roster(roster)
    known = {student: name for student in students if (name := match(student, names))}
    strangers = [student for student in students if student not in known]
    silent = [name for name in names if name not in known.values()]
    who = {student: known.get(student, student) for student in (*students, *silent)}
    there = {(who[s.student], s.lesson) for s in found if s.student}
    lessons = sorted({s.lesson for s in found if s.lesson and (not handed_out or s.lesson in handed_out)})
    shown = {person: student for student, person in reversed(who.items())}  # one student for each person
    missing = [
        Submission(student, "", lesson, fault=NOTHING)
        for person, student in sorted(shown.items())
        for lesson in lessons
        if (person, lesson) not in there
    ]
    return missing, [(name, student) for name in silent for student in strangers if alike(name, student)]


def read_roster(path: Path | None) -> list[str]:
    """Read the names of a class, each once.

    Raises: ValueError: when there is no such file.
    """
    if path is None:
        return []
    if not path.is_file():
        raise ValueError(f"{path} is no file; a text file with one student a line was expected.")
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def match(student: str, names: list[str]) -> str:
    """Find a student on the roster; empty where no name fits, or where several fit and none exactly."""
    if student in names:
        return student
    fitting = [name for name in names if spellings(name) & spellings(student)]
    return fitting[0] if len(fitting) == 1 else ""


def spellings(name: str) -> set[str]:
    """Give what a name may become without case, accents and separators: its parts in every order, written as one."""
    plain = unicodedata.normalize("NFKD", name.casefold())
    parts = ["".join(filter(str.isalnum, part)) for part in SEPARATORS.split(plain)]
    parts = [part for part in parts if part]
    orders = itertools.permutations(parts) if len(parts) <= MAX_PARTS else (parts, sorted(parts))
    return {"".join(order) for order in orders} - {""}


def alike(name: str, student: str) -> bool:
    """Tell whether two names differ by so little that one may be misspelt."""
    wanted = spellings(student)
    return any(difflib.get_close_matches(spelling, wanted, 1, ALIKE) for spelling in spellings(name))
