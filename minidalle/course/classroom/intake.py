"""Find the notebooks in a folder of submissions, whatever made it: nbgrader, Moodle, Canvas, or people.

Everything is read with limits and nothing is unpacked to the disk. What cannot be used is kept as a submission with
a fault.
"""

import io
import json
import os
import re
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from minidalle.course.classroom.lesson import Lesson, counted, graded, source_of
from minidalle.course.classroom.repair import STUDENT, defined

MAX_BYTES = 30 << 20  # of one notebook
MAX_FILES = 100_000
MAX_MEMBERS = 2_000  # of one archive
MAX_ARCHIVE = 500 << 20  # bytes of all notebooks in one archive
IGNORED = re.compile(r"^(\..*|__MACOSX|__pycache__|Thumbs\.db|desktop\.ini|timestamp\.txt|feedback)$", re.IGNORECASE)
MOODLE = re.compile(r"^(?P<name>.+)_(?P<id>\d+)_assignsubmission_\w+$")
CANVAS = re.compile(r"^(?P<name>[^_]+)_(?P<late>LATE_)?(?P<id>\d+)_\d+_(?P<file>.+)$")
COPY = re.compile(r"[ _-]*(\(\d+\)|copy(\d+)?|kopie|-\d+)$", re.IGNORECASE)
COPY_OF = re.compile(r"^(copy of|kopie von) +", re.IGNORECASE)  # as Colab calls a copy
NOTHING, EMPTY = "nothing was handed in", "the folder is empty"
MISSING = (NOTHING, EMPTY)  # faults of what is not there
COURSE = "submitted"  # of nbgrader's folder of a course
OF_ALL = ("", COURSE, "submissions", "downloads")  # folders that are no student's own
NOBODY = "it names no student: write the name into its STUDENT cell, or put it into a folder with the student's name"


@dataclass(frozen=True)
class Submission:
    """A notebook that was handed in, or what was handed in instead.

    Args:
        student: the name that marks are kept under.
        place: where it was found, for people.
        lesson: name of the lesson; empty where it belongs to none.
        notebook: as JSON; None where there is none.
        fault: why it cannot be graded.
        account: the number that a learning platform knows the student by.
        late: whether the platform says so.
        notes: what else is to be said.
    """

    student: str
    place: str
    lesson: str = ""
    notebook: dict | None = None
    fault: str = ""
    account: str = ""
    late: bool = False
    notes: tuple[str, ...] = ()


def find(folder: Path, lessons: dict[str, Lesson]) -> list[Submission]:
    """Find what was handed in.

    Args:
        folder: a folder, an archive or one notebook.
        lessons: of the course, by name.

    Raises: ValueError: when there is no such place, or nothing is in it.
    """
    if not folder.exists():
        raise ValueError(f"{folder} does not exist: name the folder with the submissions.")
    if folder.is_dir() and (folder / COURSE).is_dir():
        folder = folder / COURSE
    if folder.is_file():
        files = list(opened(PurePosixPath(folder.name), folder.read_bytes(), top=True))
    else:
        files = list(walk(folder))
    place = folder.resolve()
    own = place.name if place.is_dir() else place.stem if place.suffix.lower() == ".zip" else ""
    files = without_common_folder(files, lessons)
    if not files:
        raise ValueError(f"{folder} holds no submissions: name the folder with the submissions.")
    return gather(named([submission(path, data, fault, lessons) for path, data, fault in files], own, lessons))


File = tuple[PurePosixPath, bytes | None, str]  # where, what, and what is wrong with it


def walk(folder: Path) -> Iterator[File]:
    """Give every file below a folder; links are not followed."""
    count = 0
    for top, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not IGNORED.match(name))
        here = PurePosixPath(Path(top).relative_to(folder).as_posix())
        names = sorted(name for name in names if not IGNORED.match(name))
        linked = [name for name in folders if os.path.islink(os.path.join(top, name))]
        for name in (*names, *linked):
            count += 1
            if count > MAX_FILES:
                raise ValueError(
                    f"{folder} holds more than {MAX_FILES} files: name the folder with the submissions alone."
                )
            yield from read(Path(top, name), here / name)
        if not names and not folders and here.parts:
            yield here / "", None, EMPTY


def read(file: Path, shown: PurePosixPath) -> Iterator[File]:
    """Read one file, and open it where it is an archive."""
    try:
        status = file.lstat()
        if stat.S_ISLNK(status.st_mode):
            yield shown, None, "it is a link, which is not followed"
        elif not stat.S_ISREG(status.st_mode):
            yield shown, None, "it is no plain file"
        elif status.st_size > (MAX_ARCHIVE if shown.suffix.lower() == ".zip" else MAX_BYTES):
            yield shown, None, f"it has {status.st_size >> 20} MB, more than a notebook may have"
        else:
            yield from opened(shown, file.read_bytes())
    except OSError as error:
        yield shown, None, f"it cannot be read ({error.strerror})"


def opened(path: PurePosixPath, data: bytes, top: bool = False, depth: int = 0) -> Iterator[File]:
    """Give a file, or what an archive holds."""
    if path.suffix.lower() != ".zip":
        yield path, data, ""
        return
    inside = PurePosixPath() if top else path.with_suffix("")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            members = [m for m in members if not any(map(IGNORED.match, parts_of(m)))]
            if len(members) > MAX_MEMBERS or sum(m.file_size for m in members) > MAX_ARCHIVE:
                yield path, None, "the archive holds more than submissions do"
                return
            for member in members:
                with archive.open(member) as file:
                    content = file.read(MAX_BYTES + 1)
                name = inside.joinpath(*parts_of(member))
                if len(content) > MAX_BYTES:
                    yield name, None, "it is larger than a notebook may be"
                elif depth < 2:
                    yield from opened(name, content, depth=depth + 1)
                else:
                    yield name, None, "it is an archive in an archive in an archive"
            if not members:
                yield path, None, "the archive is empty"
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
        yield path, None, f"the archive cannot be opened ({error})"
    except Exception as error:  # zlib.error and what else a damaged archive brings up
        yield path, None, f"the archive cannot be opened ({type(error).__name__})"


def parts_of(member: zipfile.ZipInfo) -> list[str]:
    """Give the folders and the name of a member, none of which leads out of the archive."""
    return [part for part in PurePosixPath(member.filename.replace("\\", "/")).parts if part not in ("/", "..")]


def without_common_folder(files: list[File], lessons: dict[str, Lesson]) -> list[File]:
    """Leave out the folders around all submissions: those above the first level that holds several, one a student."""
    depth = 0
    while files and all(len(path.parts) > depth + 1 for path, *_ in files):
        names = {path.parts[depth] for path, *_ in files}
        if any(MOODLE.match(name) or is_lesson(name, lessons) for name in names):
            return files
        if len(names) > 1:
            return [(PurePosixPath(*path.parts[depth:]), data, fault) for path, data, fault in files]
        depth += 1
    return files


def is_lesson(name: str, lessons: dict[str, Lesson]) -> str:
    """Give the lesson that a file or folder is named after; empty where there is none."""
    stem = re.sub(r"\.(ipynb|zip)$", "", name, flags=re.IGNORECASE)
    while COPY.search(stem):
        stem = COPY.sub("", stem)
    for lesson in lessons:
        if lesson in stem or stem == lesson[:2]:
            return lesson
    return ""


def submission(path: PurePosixPath, data: bytes | None, fault: str, lessons: dict[str, Lesson]) -> Submission:
    """Tell whose a file is, and of which lesson."""
    student, account, late, name = whose(path, lessons)
    found = Submission(student, str(path), is_lesson(name, lessons), fault=fault, account=account, late=late)
    found = replace(found, lesson=found.lesson or next(filter(None, (is_lesson(p, lessons) for p in path.parts)), ""))
    if data is None:
        return found
    if path.suffix.lower() != ".ipynb" and data.lstrip()[:1] != b"{":
        return replace(found, fault=f"{path.name} is no notebook; a file that ends in .ipynb was expected")
    notebook, fault = parse(data)
    if fault:
        return replace(found, fault=fault)
    lesson = lesson_of(notebook, lessons) or found.lesson
    if not lesson:
        return replace(found, fault="it holds no exercise of the course")
    if not student:
        said = [STUDENT.search(source_of(cell)) for cell in notebook["cells"] if isinstance(cell, dict)]
        student = next((match["name"].strip() for match in said if match), "")
    return replace(found, student=student, notebook=notebook, lesson=lesson)


def whose(path: PurePosixPath, lessons: dict[str, Lesson]) -> tuple[str, str, bool, str]:
    """Read a path.

    Returns: the student, empty where the path does not tell; the platform's number; whether late; the file's own name.
    """
    for part in path.parts:
        if match := MOODLE.match(part):
            return match["name"], match["id"], False, path.name
    for part in path.parts:
        if match := CANVAS.match(part):
            return match["name"], match["id"], bool(match["late"]), match["file"] if part == path.name else path.name
    folders = [part for part in path.parts[:-1] if not is_lesson(part, lessons)]
    if folders:
        return folders[0], "", False, path.name
    if path.suffix == "" and path.parts:  # an empty folder
        return path.parts[0], "", False, path.name
    stem = COPY_OF.sub("", path.stem)
    while COPY.search(stem):
        stem = COPY.sub("", stem)
    lesson = is_lesson(path.name, lessons)
    for name in filter(None, (lesson, lesson[:2])):
        stem = re.sub(rf"(^|[ _-]+){re.escape(name)}([ _-]+|$)", " ", stem).strip(" _-")
    return stem, "", False, path.name


def parse(data: bytes) -> tuple[dict, str]:
    """Read a notebook.

    Returns: it, as the format 4 has it, and what is wrong, empty if nothing.
    """
    start = data.lstrip(b"\xef\xbb\xbf \r\n\t")[:200].lower()
    if not start:
        return {}, "the file is empty"
    if start.startswith((b"<!doctype", b"<html")):
        return {}, "it is a web page, not the notebook: download the notebook itself"
    if b"<<<<<<< " in data and b">>>>>>> " in data:
        return {}, "it holds the marks of an unfinished git merge"
    try:
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        notebook = json.loads(data.decode(encoding))
    except RecursionError:
        return {}, "it is no notebook: lists in lists without end"
    except UnicodeDecodeError:
        return {}, "it is no text, so no notebook"
    except ValueError:
        cut = "it is cut off" if not data.rstrip().endswith(b"}") else "its JSON is damaged"
        return {}, f"{cut}: save and hand in again"
    if isinstance(notebook, dict) and "worksheets" in notebook:
        notebook["cells"] = [upgraded(cell) for sheet in notebook["worksheets"] for cell in sheet.get("cells", [])]
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        return {}, "it is no notebook: it has no cells"
    return notebook | {"cells": [usable(cell) for cell in notebook["cells"] if isinstance(cell, dict)]}, ""


def upgraded(cell: dict) -> dict:
    """Give a cell of the old format 3 as one of format 4."""
    return cell | {"source": cell.get("input", cell.get("source", ""))}


def usable(cell: dict) -> dict:
    """Give a cell whose source is text and whose metadata are a dictionary, whatever was there."""
    source = cell.get("source", "")
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    metadata = cell.get("metadata")
    marks = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    named = isinstance(marks, dict) and isinstance(marks.get("grade_id"), str)
    return {
        "cell_type": cell.get("cell_type"),
        "id": cell.get("id"),
        "source": source if isinstance(source, str) else "",
        "metadata": {"nbgrader": marks} if named else {},
    }


def lesson_of(notebook: dict, lessons: dict[str, Lesson]) -> str:
    """Tell which lesson a notebook is of: by its stamp, by the marks of its cells, by what they define."""
    stamp = notebook.get("metadata", {})
    stamp = stamp.get("minidalle", {}) if isinstance(stamp, dict) else {}
    if isinstance(stamp, dict) and stamp.get("lesson") in lessons:
        return stamp["lesson"]
    ids = {(graded(cell) or {}).get("grade_id") for cell in notebook["cells"]}
    names = set().union(*(defined(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"), ())
    scores = {}
    for name, lesson in lessons.items():
        known = sum((e.name in ids) + (e.test in ids) for e in lesson.exercises)
        scores[name] = known or sum({*e.functions, *e.values} <= names for e in lesson.exercises) / 2
    best = max(scores, key=scores.__getitem__, default="")
    return best if best and scores[best] > 0 else ""


def named(found: list[Submission], own: str, lessons: dict[str, Lesson]) -> list[Submission]:
    """Name the notebooks whose place names nobody: after the folder that is one student's own, or as what is odd.

    Args:
        found: what was handed in.
        own: name of the folder or archive that all of it lies in; empty where there is none.
        lessons: of the course, by name.
    """
    nobody = [s for s in found if not s.student]
    others = [s for s in found if s.student and (s.notebook is not None or "/" in s.place or s.fault == EMPTY)]
    twice = len({s.lesson for s in nobody}) < len(nobody)  # then it may be the work of several
    if nobody and not others and not twice and own.lower() not in OF_ALL and not is_lesson(own, lessons):
        return [replace(s, student=own) for s in found]
    return [
        s if s.student else replace(s, lesson="", notebook=None, fault=f"{s.fault}; {NOBODY}".lstrip("; "))
        for s in found
    ]


def gather(found: list[Submission]) -> list[Submission]:
    """Put what one student handed in together: beside a notebook, other files are only mentioned."""
    with_notebook = {s.student for s in found if s.notebook is not None}
    kept, extra = [], {}
    for each in found:
        if each.fault and not each.lesson and each.student in with_notebook:
            extra[each.student] = extra.get(each.student, 0) + 1
        else:
            kept.append(each)
    told = "Not used, since no notebook of the course:"
    return [
        replace(s, notes=(*s.notes, f"{told} {counted(extra[s.student], 'further file')}."))
        if s.notebook and s.student in extra
        else s
        for s in kept
    ]
