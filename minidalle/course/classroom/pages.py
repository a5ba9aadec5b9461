"""Pages that a browser shows: feedback for each student, and a picture of the class for the instructor."""

import hashlib
import html
import re
from collections import Counter
from pathlib import Path

from minidalle.course.classroom.alike import pairs
from minidalle.course.classroom.grade import Graded, Mark, by_name, sentence
from minidalle.course.classroom.intake import Submission
from minidalle.course.classroom.lesson import counted
from minidalle.course.classroom.marks import number
from minidalle.course.classroom.picture import LOST, picture, untried
from minidalle.course.classroom.release import write

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .6rem;border-bottom:1px solid #ccc}
td,th{text-align:left;vertical-align:top}
pre{background:#f4f4f4;padding:.8rem;overflow-x:auto}.full{color:#00614a}.part{color:#7a4b00}.none{color:#a1260d}
.n{text-align:right}.wide{overflow-x:auto}h2{margin-top:2.5rem}"""
SHOWN = 3  # wrong answers that recur, of an exercise
MADE = '<meta name="generator" content="minidalle classroom">'  # by which a page is known as our own


def page(title: str, body: str) -> bytes:
    """Put a body into a page that needs nothing from outside."""
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8">{MADE}<title>{html.escape(title)}</title>'
    return f"{head}<style>{STYLE}</style></head><body>{body}</body></html>\n".encode()


def write_pages(out: Path, results: list[Graded], odd: list[Submission]) -> None:
    """Write a page for each student into feedback in place of those of an earlier run, and class.html and class.svg."""
    folder = out / "feedback"
    folder.mkdir(parents=True, exist_ok=True)
    names = {each.submission.student: f"{file_name(each.submission.student)}.html" for each in results}
    for path in folder.glob("*.html"):
        if path.name not in names.values() and is_own(path):
            path.unlink()
    for student, name in names.items():
        own = [each for each in results if each.submission.student == student]
        write(folder / name, page(f"Feedback: {student}", feedback(student, own)))
    drawing = drawn_class(results)
    write(out / "class.svg", f"{drawing}\n".encode())
    write(out / "class.html", page("The class", class_page(results, odd, drawing)))


def is_own(path: Path) -> bool:
    """Tell whether a run of ours wrote a page."""
    with path.open("rb") as file:
        return MADE.encode() in file.read(400)


def file_name(student: str) -> str:
    """Make a name of a file; where that changes the student's, a sum keeps two students apart."""
    plain = re.sub(r"[^\w.-]+", "_", student).strip("._")[:80]
    return plain if plain == student else f"{plain}-{hashlib.sha256(student.encode()).hexdigest()[:6]}"


def feedback(student: str, own: list[Graded]) -> str:
    """Write what a student reads: points, the first thing to mend, and their own code; no hidden test."""
    parts = [f"<h1>{html.escape(student)}</h1>"]
    for each in own:
        total = number(sum(mark.exercise.points for mark in each.marks))
        parts.append(f"<h2>{html.escape(each.lesson.title)}: {number(each.points)} of {total} points</h2>")
        notes = [sentence(each.submission.fault), *each.answers.notes, *each.submission.notes]
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in notes if note)
        parts += [f"<ul>{notes}</ul>"] if notes else []
        parts += [exercise(mark, each.answers.sources.get(mark.exercise.name)) for mark in each.marks]
    return "\n".join(parts)


def exercise(mark: Mark, source: str | None) -> str:
    """Write what one answer got."""
    of = mark.exercise.points
    kind, word = ("full", "✓") if mark.points == of else ("part", "◐") if mark.points else ("none", "✗")
    head = f"{html.escape(mark.exercise.title)}: {word} {number(mark.points)} of {number(of)}"
    status = "" if mark.status == "graded" else f" ({mark.status})"
    said = f"<p>{html.escape(mark.reason)}</p>" if mark.reason else ""
    code = f"<details><summary>Your answer</summary><pre>{html.escape(source)}</pre></details>" if source else ""
    return f'<h3 class="{kind}">{head}{status}</h3>{said}{code}'


def drawn_class(results: list[Graded]) -> str:
    """Draw all marks as one picture."""
    students = sorted({each.submission.student for each in results}, key=by_name)
    marks = {(each.submission.student, m.exercise.name): m for each in results for m in each.marks}
    return picture(students, exercises_of_class(results), marks)


def exercises_of_class(results: list[Graded]) -> list:
    """List the exercises of all lessons that occur."""
    lessons = {each.lesson.name: each for each in results}
    return [mark.exercise for name in sorted(lessons) for mark in lessons[name].marks]


def class_page(results: list[Graded], odd: list[Submission], drawing: str) -> str:
    """Write what the instructor reads."""
    students = len({each.submission.student for each in results})
    lessons = sorted({each.lesson.name for each in results})
    named = f"{counted(len(lessons), 'lesson')} ({', '.join(name[:2] for name in lessons) or 'nothing to grade'})"
    parts = [f"<h1>The class: {counted(students, 'student')}, {named}</h1>"]
    parts.append("<h2>Picture</h2><p>A column for each exercise, a row for each student; hover for the reason. ")
    parts.append('<a href="class.svg">class.svg</a> is the same picture.</p>')
    parts.append(f'<div class="wide">{drawing}</div>')
    marks = [mark for each in results for mark in each.marks]
    parts.append("<h2>Exercises</h2>" + hardness(exercises_of_class(results), marks))
    parts.append("<h2>What was odd</h2>" + oddities(results, odd))
    parts.append("<h2>Submissions that are alike</h2>" + alikeness(results))
    return "\n".join(parts)


def hardness(exercises: list, marks: list[Mark]) -> str:
    """Tabulate how hard each exercise was, and which wrong answers recur."""
    rows = []
    for e in exercises:
        own = [mark for mark in marks if mark.exercise.name == e.name]
        tried = [m for m in own if m.status not in LOST and not untried(m)]
        full = sum(m.points == e.points for m in own)
        mean = sum(m.points for m in own) / len(own) if own else 0
        reasons = Counter(pattern(m.reason) for m in tried if m.reason).most_common(SHOWN)
        said = "<br>".join(f"{count} × {html.escape(reason)}" for reason, count in reasons if count > 1)
        numbers = "".join(f'<td class="n">{x}</td>' for x in (len(tried), full, f"{mean:.1f} of {number(e.points)}"))
        rows.append(f"<tr><td>{html.escape(e.title)}</td>{numbers}<td>{said}</td></tr>")
    head = "<tr><th>exercise</th><th>tried</th><th>full points</th><th>mean</th><th>wrong answers that recur</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def pattern(reason: str) -> str:
    """Give a reason without its numbers, so that like errors are counted together."""
    return re.sub(r"-?\d[\d,]*(\.\d+)?(e-?\d+)?", "…", reason)


def oddities(results: list[Graded], odd: list[Submission]) -> str:
    """List every submission that was not simply graded, and why."""
    rows = []
    for each in results:
        said = [sentence(each.submission.fault), *each.answers.notes, *each.submission.notes]
        said += [f"{m.exercise.title}: {m.reason}" for m in each.marks if m.status in ("crashed", "timed out")]
        if any(said):
            rows.append((each.submission.student, each.lesson.name, each.status, " ".join(filter(None, said))))
    rows += [(s.student or s.place, "", "unreadable", f"{s.place}: {sentence(s.fault)}") for s in odd]
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(x)}</td>" for x in row) + "</tr>" for row in rows)
    head = "<tr><th>student</th><th>lesson</th><th>status</th><th>what</th></tr>"
    return f"<table>{head}{cells}</table>" if rows else "<p>Nothing.</p>"


def alikeness(results: list[Graded]) -> str:
    """List pairs whose answers share wordings that few others have, with a word of care."""
    found = pairs(results)
    care = (
        "<p>These pairs share wordings that few others in the class use. That is a reason to read both, not a finding: "
        "students who learn together, or from the same book, write alike.</p>"
    )
    if not found:
        return "<p>No two submissions share unusually much.</p>"
    rows = "".join(
        f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td><td>{lesson}</td>"
        f'<td class="n">{count}</td><td class="n">{share:.0%}</td></tr>'
        for share, count, a, b, lesson in found
    )
    head = "<tr><th>student</th><th>student</th><th>lesson</th><th>shared wordings</th><th>share</th></tr>"
    return f"{care}<table>{head}{rows}</table>"
