"""Grade a class that a script makes, and compare every mark with the one that its answer is worth.

    python tools/class_trial.py 01_scenes 300

Most students give right and wrong answers of tests/course/exercises, drawn at random; one in ten hands in something
odd or hostile. Prints the minutes, the seconds a notebook, and every mark that is not as expected.
"""

import csv
import json
import random
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from minidalle.course.classroom.lesson import graded, read_lesson
from minidalle.course.classroom.release import student_copy

ROOT = Path(__file__).parent.parent
HEAD = re.compile(r"^=== (\S+) (right|wrong (\d+)): (.+)$", re.MULTILINE)
ENDS = {
    "ends itself": "import os\nos._exit(0)",
    "never ends": "while True: pass",
    "eats memory": "kept = bytearray(8 << 30)",
    "crashes": "import ctypes\nctypes.string_at(0)",
    "patches torch": "torch.allclose = torch.equal = lambda *a, **k: True\nimport builtins\nbuiltins.abs = lambda x: 0",
    "searches": "import os\nfor top, _, names in os.walk('/'): pass\nraise SystemExit",
}
FILES = "cut,empty,web page,pdf,empty folder,zip,renamed,doubled,no metadata,forged,two files".split(",")


def answers(lesson) -> dict[str, list[tuple[float, str]]]:
    """Read what the answers of a lesson are worth, and the answers."""
    text = (ROOT / "tests/course/exercises" / f"{lesson.name}.txt").read_text(encoding="utf-8")
    heads = list(HEAD.finditer(text))
    found = {e.name: [(e.points, e.solution), (0.0, e.stub)] for e in lesson.exercises}
    points = {e.name: e.points for e in lesson.exercises}
    for head, end in zip(heads, [*(h.start() for h in heads[1:]), len(text)], strict=True):
        worth = points[head[1]] if head[2] == "right" else float(head[3])
        found[head[1]].append((worth, text[head.end() : end].strip()))
    return found


def filled(lesson, sources: dict[str, str]) -> dict:
    """Write answers into a student copy."""
    notebook = student_copy(lesson)
    for cell in notebook["cells"]:
        name = (graded(cell) or {}).get("grade_id")
        if name in sources:
            cell["source"] = sources[name]
    return notebook


def hand_in(folder: Path, student: str, lesson, notebook: dict, odd: str) -> bool:
    """Write what a student hands in; gives whether it can be graded."""
    own, name = folder / student, f"{lesson.name}.ipynb"
    own.mkdir(parents=True)
    cells = [cell for cell in notebook["cells"] if graded(cell)]
    if odd == "doubled":
        notebook["cells"].insert(2, json.loads(json.dumps(cells[0])))
    if odd == "no metadata":
        for cell in cells:
            cell["metadata"] = {}
    if odd == "forged":
        cells[1]["source"], cells[1]["metadata"]["nbgrader"]["points"] = "assert True", 100
    data = json.dumps(notebook)
    if odd == "zip":
        with zipfile.ZipFile(own / "work.zip", "w") as archive:
            archive.writestr(f"my work/{name}", data)
    elif odd != "empty folder":
        changed = {"cut": data[: len(data) // 2], "empty": "", "web page": "<!DOCTYPE html>", "pdf": "%PDF"}
        (own / {"renamed": "homework (1).ipynb", "pdf": "work.pdf"}.get(odd, name)).write_text(changed.get(odd, data))
    if odd == "two files":
        (own / f"{lesson.name} (1).ipynb").write_text(json.dumps(student_copy(lesson)))
    return odd not in ("cut", "empty", "web page", "pdf", "empty folder")


def make_class(folder: Path, lesson, size: int) -> dict[tuple[str, str], float]:
    """Write a class; gives what each student is to get for each exercise."""
    rng, told, expected = random.Random(7), answers(lesson), {}
    for i in range(size):
        student, odd = f"student{i:03}", ""
        given = {name: rng.choice(several) for name, several in told.items()}
        if i % 20 == 3:
            odd = rng.choice(FILES)
        if i % 20 == 13:  # a hostile first answer
            first = lesson.exercises[0].name
            given[first] = (0.0, rng.choice(list(ENDS.values())))
        sources = {name: source for name, (_, source) in given.items()}
        usable = hand_in(folder, student, lesson, filled(lesson, sources), odd)
        expected |= {(student, name): worth if usable else 0.0 for name, (worth, _) in given.items()}
    return expected


def main(name: str, size: int) -> None:
    """Make, grade and compare."""
    lesson = read_lesson(ROOT / "notebooks" / f"{name}.ipynb")
    with tempfile.TemporaryDirectory() as folder:
        place, out = Path(folder, "in"), Path(folder, "out")
        expected = make_class(place, lesson, size)
        started = time.perf_counter()
        command = [sys.executable, "-m", "minidalle.course.classroom.commands", "grade", str(place), "--out", str(out)]
        command += ["--seconds", "10", *sys.argv[3:]]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        took = time.perf_counter() - started
        notebooks = list(csv.DictReader((out / "marks" / "notebooks.csv").read_text(encoding="utf-8").splitlines()))
        rows = list(csv.DictReader((out / "marks" / "marks.csv").read_text(encoding="utf-8").splitlines()))
    print(done.stdout)
    wrong = [row for row in rows if float(row["points"]) != expected[row["student"], row["exercise"]]]
    for row in wrong:
        print(row, expected[row["student"], row["exercise"]])
    seconds = sorted(float(row["seconds"]) for row in notebooks)
    print(f"{size} notebooks of {name} in {took / 60:.1f} minutes, {took / size:.2f} s a notebook by the clock;")
    print(f"of a processor's time a mean of {sum(seconds) / size:.2f} s and at most {seconds[-1]:.1f} s a notebook;")
    print(f"{len(rows)} marks, {len(wrong)} not as expected")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
