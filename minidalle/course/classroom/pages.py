"""Pages that a browser shows: feedback for each student, and a picture of the class for the instructor."""

import hashlib
import html
import re
from collections import Counter
from pathlib import Path

from minidalle.course.classroom.alike import pairs
from minidalle.course.classroom.grade import Graded, Mark, sentence
from minidalle.course.classroom.intake import Submission
from minidalle.course.classroom.marks import number
from minidalle.course.classroom.release import write

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .6rem;border-bottom:1px solid #ccc}
td,th{text-align:left;vertical-align:top}
pre{background:#f4f4f4;padding:.8rem;overflow-x:auto}.full{color:#00614a}.part{color:#7a4b00}.none{color:#a1260d}
.n{text-align:right}h2{margin-top:2.5rem}"""
CELL = 14  # pixels of a field of the picture


def page(title: str, body: str) -> bytes:
    """Put a body into a page that needs nothing from outside."""
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
    return f"{head}<style>{STYLE}</style></head><body>{body}</body></html>\n".encode()


def write_pages(out: Path, results: list[Graded], odd: list[Submission]) -> None:
    """Write a page for each student into feedback, and class.html."""
    folder = out / "feedback"
    folder.mkdir(parents=True, exist_ok=True)
    for student in dict.fromkeys(each.submission.student for each in results):
        own = [each for each in results if each.submission.student == student]
        write(folder / f"{file_name(student)}.html", page(f"Feedback: {student}", feedback(student, own)))
    write(out / "class.html", page("The class", class_page(results, odd)))


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


def class_page(results: list[Graded], odd: list[Submission]) -> str:
    """Write what the instructor reads."""
    students = sorted({each.submission.student for each in results})
    lessons = sorted({each.lesson.name for each in results})
    exercises = [e for name in lessons for e in next(g for g in results if g.lesson.name == name).lesson.exercises]
    marks = {(each.submission.student, m.exercise.name): m for each in results for m in each.marks}
    parts = [f"<h1>The class: {len(students)} students, lessons {', '.join(name[:2] for name in lessons)}</h1>"]
    parts.append("<h2>Picture</h2><p>A column for each exercise, a row for each student; hover for the reason.</p>")
    parts.append(picture(students, exercises, marks))
    parts.append("<h2>Exercises</h2>" + hardness(exercises, marks))
    parts.append("<h2>What was odd</h2>" + oddities(results, odd))
    parts.append("<h2>Submissions that are alike</h2>" + alikeness(results))
    return "\n".join(parts)


def picture(students: list[str], exercises: list, marks: dict) -> str:
    """Draw the class: the fuller a field, the more of the points."""
    left, top = 170, 110
    width, height = left + CELL * len(exercises) + 70, top + CELL * len(students) + 10
    label = f"Marks of {len(students)} students in {len(exercises)} exercises; the table below has the same numbers."
    out = [f'<svg role="img" aria-label="{label}" width="{width}" height="{height}" font-size="11">']
    for i, e in enumerate(exercises):
        x = left + CELL * i + CELL - 3
        out.append(f'<text transform="translate({x},{top - 6}) rotate(-60)">{html.escape(e.name)}</text>')
    for j, student in enumerate(students):
        y = top + CELL * j
        out.append(f'<text x="{left - 6}" y="{y + 11}" text-anchor="end">{html.escape(student[:26])}</text>')
        for i, e in enumerate(exercises):
            out.append(square(left + CELL * i, y, marks.get((student, e.name)), student))
    return "".join(out) + "</svg>"


def square(x: int, y: int, mark: Mark | None, student: str) -> str:
    """Draw one mark: filled from below by its share of the points, crossed out where nothing could be graded."""
    side = CELL - 2
    frame = f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="#eee"/>'
    if mark is None:
        return ""
    tall = round(side * mark.points / mark.exercise.points, 1)
    color = "#0072B2" if mark.points == mark.exercise.points else "#E69F00"
    fill = f'<rect x="{x}" y="{y + side - tall}" width="{side}" height="{tall}" fill="{color}"/>' if tall else ""
    lost = mark.status in ("crashed", "timed out", "unreadable", "missing")
    cross = f'<path d="M{x},{y}l{side},{side}m0,-{side}l-{side},{side}" stroke="#a1260d"/>' if lost else ""
    said = f"{student}, {mark.exercise.title}: {number(mark.points)} of {number(mark.exercise.points)}. {mark.reason}"
    return f"<g><title>{html.escape(said)}</title>{frame}{fill}{cross}</g>"


def hardness(exercises: list, marks: dict) -> str:
    """Tabulate how hard each exercise was, and which wrong answers recur."""
    rows = []
    for e in exercises:
        own = [mark for (_, name), mark in marks.items() if name == e.name]
        tried = [m for m in own if m.status != "missing" and not m.reason.startswith("Not attempted")]
        full = sum(m.points == e.points for m in own)
        mean = sum(m.points for m in own) / len(own) if own else 0
        reasons = Counter(pattern(m.reason) for m in tried if m.reason).most_common(3)
        said = "<br>".join(f"{count} × {html.escape(reason)}" for reason, count in reasons)
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
