"""The classroom around the grader: student copies, what comes back damaged or packed, tables and pages."""

import copy
import csv
import dataclasses
import io
import json
import os
import zipfile
from pathlib import Path

import classroom_lesson as tiny
import pytest

from minidalle.course.classroom import alike, commands, grade, gradebook, intake, marks, pages, slices
from minidalle.course.classroom.lesson import (
    Lesson,
    LessonError,
    clear_hidden,
    clear_solution,
    exercises_of,
    read_lesson,
)
from minidalle.course.classroom.release import release, student_copy
from minidalle.course.classroom.repair import repair

NOTEBOOK = tiny.notebook()
LESSON = Lesson(tiny.NAME, NOTEBOOK, list(exercises_of(NOTEBOOK["cells"], tiny.NAME)))
LESSONS = {tiny.NAME: LESSON}
COURSE = sorted((Path(__file__).parents[2] / "notebooks").glob("[0-9][0-9]_*.ipynb"))
COURSE = [path for path in COURSE if "BEGIN SOLUTION" in path.read_text(encoding="utf-8")]
SOLVED = tiny.filled(student_copy(LESSON), tiny.RIGHT)


def cells(notebook: dict) -> dict[str, dict]:
    """Give the cells that have a grade_id."""
    return {c["metadata"]["nbgrader"]["grade_id"]: c for c in notebook["cells"] if "nbgrader" in c["metadata"]}


def table(path: Path) -> list[dict]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def text_of(notebook: dict) -> str:
    return "\n".join("".join(cell["source"]) for cell in notebook["cells"])


# ------------------------------------------------------------------------------------------------ student copies


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_a_student_copy_leaks_nothing_and_keeps_the_rest(path):
    lesson = read_lesson(path)
    made = student_copy(lesson)
    said = text_of(made)
    assert "SOLUTION" not in said and "HIDDEN" not in said
    assert all(cell.get("outputs") in ([], None) and cell.get("execution_count") is None for cell in made["cells"])
    assert "colab.research.google.com/github" not in said
    for exercise in lesson.exercises:
        for block in exercise.blocks:
            assert (block.source in said) != block.hidden
        answer = exercise.solution.split("### BEGIN SOLUTION\n")[1].split("### END SOLUTION")[0].rstrip()
        assert answer.strip() and answer not in said
        assert sum(exercise.parts.values()) == exercise.points
    assert made["metadata"]["minidalle"]["lesson"] == lesson.name
    assert lesson.notebook == json.loads(path.read_text(encoding="utf-8"))  # the lesson itself is not changed


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_every_assert_of_an_exercise_has_a_sentence_and_hidden_tests_always_assert(path):
    import ast

    for exercise in read_lesson(path).exercises:
        asserts = [node for node in ast.walk(ast.parse(exercise.tests)) if isinstance(node, ast.Assert)]
        assert all(node.msg is not None for node in asserts), exercise.name
        hidden = [block.source for block in exercise.blocks if block.hidden]
        assert any("assert " in source or "test_" in source for source in hidden), exercise.name


def test_nbgrader_makes_the_same_copy():
    preprocessors = pytest.importorskip("nbgrader.preprocessors")
    import nbformat
    from nbgrader.utils import compute_checksum

    made = nbformat.from_dict(copy.deepcopy(NOTEBOOK))
    for name in ("ClearSolutions", "ClearOutput", "ClearHiddenTests", "LockCells"):
        made, _ = getattr(preprocessors, name)().preprocess(made, {})
    ours = cells(student_copy(LESSON))
    for name, cell in cells(made).items():
        mine, theirs = "".join(ours[name]["source"]), cell.source
        mine = mine.replace('NotImplementedError("Your answer goes here.")', "NotImplementedError()")
        assert mine.splitlines()[: len(theirs.splitlines())] == theirs.rstrip("\n").splitlines()
        assert {k: ours[name]["metadata"].get(k) for k in ("deletable", "editable")} == {
            k: cell.metadata.get(k) for k in ("deletable", "editable")
        }
        node = nbformat.from_dict(ours[name] | {"source": "".join(ours[name]["source"])})
        assert node.metadata.nbgrader.checksum == compute_checksum(node)


def test_stubs_keep_their_indent_and_a_copy_says_when_a_check_has_passed():
    assert clear_solution(
        "def f():\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION\nx = 1"
    ).splitlines() == [
        "def f():",
        "    # YOUR CODE HERE",
        '    raise NotImplementedError("Your answer goes here.")',
        "x = 1",
    ]
    assert clear_hidden("a\n### BEGIN HIDDEN TESTS\nb\n### END HIDDEN TESTS\nc") == "a\nc"
    check = "".join(cells(student_copy(LESSON))["42-area-test"]["source"])
    assert check.endswith("print('Passed: 42.1. When it is graded, further checks follow.')")


def test_a_badge_opens_the_students_copy_or_is_left_out():
    assert "github/minidalle" not in text_of(student_copy(LESSON))
    address = "https://colab.research.google.com/github/me/class/blob/main/release"
    assert f"({address}/42_tiny/42_tiny.ipynb)" in text_of(student_copy(LESSON, address + "/"))


def test_self_learners_keep_every_check_and_unfold_solutions():
    said = text_of(student_copy(LESSON, self_study=True))
    assert str(tiny.SECRET) in said and "SOLUTION" not in said and "HIDDEN" not in said
    assert "<summary>A solution of 42.1: an area</summary>" in said and "## Hand in" not in said


def test_a_release_is_a_folder_and_a_zip_for_each_lesson_and_is_the_same_again(tmp_path):
    folder = release([LESSON], tmp_path)
    archive = folder / "42_tiny.zip"
    first = archive.read_bytes()
    with zipfile.ZipFile(archive) as opened:
        assert opened.read("42_tiny/42_tiny.ipynb") == (folder / "42_tiny" / "42_tiny.ipynb").read_bytes()
    assert json.loads((tmp_path / "class.json").read_text())["lessons"] == {"42_tiny": LESSON.digest}
    release([LESSON], tmp_path)
    assert archive.read_bytes() == first
    with pytest.raises(ValueError, match="this class has seed None, not 3"):
        release([LESSON], tmp_path, seed=3)
    (tmp_path / "class.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        release([LESSON], tmp_path)


def test_what_an_answer_imports_is_no_answer():
    exercise = LESSON.exercises[1]
    made = dataclasses.replace(
        exercise, solution="import math\nfrom os import path\n\n\nclass Own:\n    x = 1\n\n\n" + tiny.PAIR
    )
    assert made.values == exercise.values == ["ONE", "TWO"] and made.functions == []


def test_a_lesson_that_cannot_be_paired_is_refused(tmp_path):
    with pytest.raises(LessonError, match="judges no exercise"):
        list(exercises_of(tiny.notebook()["cells"][5:], "x"))
    with pytest.raises(LessonError, match="no notebook"):
        read_lesson(tmp_path / "none.ipynb")
    wrong = tiny.notebook()
    wrong["cells"][9]["metadata"]["nbgrader"]["points"] = 7
    with pytest.raises(LessonError, match="has 7 points, and its parts add up to 3"):
        _ = list(exercises_of(wrong["cells"], "x"))[1].parts


# ------------------------------------------------------------------------------------------------ damaged notebooks


def index(notebook: dict, name: str) -> int:
    return next(i for i, c in enumerate(notebook["cells"]) if c["metadata"].get("nbgrader", {}).get("grade_id") == name)


def doubled(notebook: dict) -> None:
    notebook["cells"].insert(0, copy.deepcopy(cells(notebook)["42-area"]))


def doubled_empty(notebook: dict) -> None:
    stub = copy.deepcopy(cells(student_copy(LESSON))["42-area"])
    notebook["cells"].append(stub)


def without_marks(notebook: dict) -> None:
    for cell in notebook["cells"]:
        cell["metadata"] = {}


def forged(notebook: dict) -> None:
    check = cells(notebook)["42-area-test"]
    check["metadata"]["nbgrader"]["points"] = 1000
    check["source"] = "assert True"


def foreign(notebook: dict) -> None:
    extra = copy.deepcopy(cells(notebook)["42-area-test"])
    extra["metadata"]["nbgrader"]["grade_id"] = "42-bonus"
    notebook["cells"].append(extra)


def split(notebook: dict) -> None:
    place = index(notebook, "42-pair")
    rest = copy.deepcopy(notebook["cells"][place])
    notebook["cells"][place]["source"], rest["source"] = tiny.PAIR, "# a note"
    notebook["cells"].insert(place + 1, rest)


def as_text(notebook: dict) -> None:
    cells(notebook)["42-area"]["cell_type"] = "markdown"


DAMAGES = {  # what happened, and a part of what is said of it
    "a cell is there twice": (doubled, "its cell is there 2 times"),
    "the stub is there as well": (doubled_empty, "the one that was written counts"),
    "all marks are gone": (without_marks, "found by what it defines"),
    "a check is gone": (lambda n: n["cells"].pop(index(n, "42-area-test")), "its check was gone and was put back"),
    "a check is forged": (forged, "its check was changed and was put back"),
    "a check is there twice": (lambda n: n["cells"].append(cells(n)["42-area-test"]), "its check was there 2 times"),
    "a check of nobody's": (foreign, "Left out: 1 cell with"),
    "an answer is split": (split, "its cell is there 2 times"),
    "an answer became text": (as_text, "had become text"),
    "a cell of the lesson is gone": (lambda n: n["cells"].pop(2), "1 of the lesson's own cells was changed or gone"),
    "the cells are turned round": (lambda n: n["cells"].reverse(), ""),
    "the stamp is another's": (lambda n: n["metadata"]["minidalle"].update(release="old"), "of the release old"),
}


@pytest.fixture(scope="module")
def graded_damages() -> dict[str, grade.Graded]:
    """Grade all damaged notebooks as one class, beside an undamaged one."""
    found = [intake.Submission("whole", "whole.ipynb", tiny.NAME, SOLVED)]
    for name, (damage, _) in DAMAGES.items():
        notebook = copy.deepcopy(SOLVED)
        damage(notebook)
        parsed, fault = intake.parse(json.dumps(notebook).encode())
        assert not fault
        found.append(intake.Submission(name, f"{name}.ipynb", tiny.NAME, parsed))
    return {each.submission.student: each for each in grade.grade_all(found, LESSONS, jobs=2)}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_notebook_keeps_its_points_and_the_damage_is_said(graded_damages, damage):
    result, said = graded_damages[damage], DAMAGES[damage][1]
    assert result.points == 9, result.marks
    assert any(said in note for note in result.answers.notes) or not said, result.answers.notes
    assert result.status == ("repaired" if result.answers.notes else "graded")
    assert graded_damages["whole"].status == "graded" and not graded_damages["whole"].answers.notes


def test_an_answer_that_is_gone_is_missing_and_costs_no_other():
    notebook = copy.deepcopy(SOLVED)
    notebook["cells"].pop(index(notebook, "42-area"))
    found = repair(notebook, LESSON)
    assert found.sources["42-area"] is None and found.sources["42-pair"] == tiny.PAIR
    assert grade.untried(LESSON.exercises[0], found).status == "missing"


def test_of_the_further_cells_only_what_answers_need_is_taken():
    notebook = copy.deepcopy(SOLVED)
    cells(notebook)["42-area"]["source"] = "def area(w, h):\n    total = times(w, h)\n    return sum([total])"
    scratch = "sum = 0\ntotal = 5\nprint(area(1, 2))\nimport time\ntime.sleep(100)"
    helper = "FACTOR = 1\ndef times(a, b):\n    return FACTOR * a * b"
    notebook["cells"] += [tiny.cell("code", scratch), tiny.cell("code", helper), tiny.cell("code", "doubled = 3")]
    found = repair(notebook, LESSON)
    assert found.added == ["FACTOR = 1", "def times(a, b):\n    return FACTOR * a * b"]
    submission = intake.Submission("x", "", tiny.NAME, notebook)
    (result,) = grade.grade_all([submission], LESSONS, jobs=1)
    assert result.points == 9


def test_the_cells_that_exercises_need_are_found():
    own = [
        "import math",
        "x = 1",
        "y = []",
        "y.append(2)",
        "z = 3",
        "def f():\n    return late",
        "late = x",
        "print(y)",
    ]
    assert slices.slice_of(own, {"y"}) == [2, 3]
    assert slices.slice_of(own, {"f"}) == [1, 5, 6]
    assert slices.slice_of(own, {"math"}) == [0]
    assert slices.slice_of(["a = 1", "b = [a for a in range(3)]", "a = 2", "c = a"], {"b"}) == [1]
    assert slices.slice_of(["a = 1", "b = a", "a = 2", "c = a"], {"b"}) == [0, 1]
    fitted = ["a = []", "print(a)", "fit(a)", "for b in a:\n    b.grow()", "a[0] = 1", "c = a"]
    assert slices.slice_of(fitted, {"c"}) == [0, 2, 4, 5]
    assert slices.statements(["%pip install x\na = 1; b = 2", "@f\ndef g():\n    return a"])[1:3] == ["a = 1", "b = 2"]
    assert slices.needed(["n = 1\nm = n + k", "for i in range(3):\n    j = i"]) == {"k", "range"}


# ------------------------------------------------------------------------------------------------ what is handed in


def packed(**files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


GOOD = json.dumps(SOLVED).encode()
NAMED = GOOD.replace(b'STUDENT = \\"\\"', b'STUDENT = \\"Ada\\"')
PLACES = {  # a path, its content, and whose it is
    "nbgrader": ("ada/42_tiny/42_tiny.ipynb", GOOD, "ada", ""),
    "nbgrader with the number": ("ada/42/42_tiny.ipynb", GOOD, "ada", ""),
    "moodle": ("Ada L_123_assignsubmission_file/42_tiny.ipynb", GOOD, "Ada L", "123"),
    "moodle with a zip": ("Ada L_123_assignsubmission_file_/work.zip", packed(**{"a/b.ipynb": GOOD}), "Ada L", "123"),
    "canvas": ("lovelaceada_123_456_42_tiny.ipynb", GOOD, "lovelaceada", "123"),
    "canvas late": ("lovelaceada_LATE_123_456_42_tiny-1.ipynb", GOOD, "lovelaceada", "123"),
    "a loose notebook": ("ada 42_tiny (1).ipynb", GOOD, "ada", ""),
    "a copy": ("42_tiny - Copy.ipynb", NAMED, "Ada", ""),
    "another name": ("homework/my answers.ipynb", GOOD, "homework", ""),
    "a name in the notebook": ("42_tiny.ipynb", NAMED, "Ada", ""),
    "a zip for a student": ("ada.zip", packed(**{"x/42_tiny.ipynb": GOOD}), "ada", ""),
    "without an ending": ("ada/42_tiny", GOOD, "ada", ""),
    "a zip that climbs": ("ada.zip", packed(**{"../../../42_tiny.ipynb": GOOD}), "ada", ""),
}


@pytest.mark.parametrize("kind", PLACES)
def test_notebooks_are_found_wherever_they_lie(kind, tmp_path):
    path, data, student, account = PLACES[kind]
    for name, content in ((path, data), ("eve/42_tiny/42_tiny.ipynb", GOOD)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = [s for s in intake.find(tmp_path, LESSONS) if s.student != "eve"]
    assert [(s.student, s.lesson, s.account, s.fault) for s in found] == [(student, tiny.NAME, account, "")]
    assert found[0].late == ("LATE" in path)


FAULTY = {
    "an empty file": (b"", "the file is empty"),
    "cut off": (GOOD[:3000], "cut off"),
    "a web page": (b"<!DOCTYPE html><html></html>", "a web page"),
    "git": (GOOD.replace(b"cells", b"<<<<<<< HEAD\n>>>>>>> x", 1), "git merge"),
    "no notebook": (b'{"a": 1}', "has no cells"),
    "a list": (b"[1]", "has no cells"),
    "binary": (bytes(range(128, 256)), "no text"),
    "lists in lists": (b'{"cells": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "lists in lists"),
    "no exercise": (json.dumps({"cells": [tiny.cell("code", "1")]}).encode(), "no exercise of the course"),
}


@pytest.mark.parametrize("kind", FAULTY)
def test_what_is_no_notebook_is_named_with_its_reason(kind, tmp_path):
    data, said = FAULTY[kind]
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada" / "work.ipynb").write_bytes(data)
    (found,) = intake.find(tmp_path, LESSONS)
    assert found.student == "ada" and found.notebook is None and said in found.fault


def test_odd_files_are_named_and_stop_nothing(tmp_path):
    (tmp_path / "eve").mkdir()
    (tmp_path / "eve" / "42_tiny.ipynb").write_bytes(GOOD)
    (tmp_path / "eve" / "minidalle").mkdir()
    (tmp_path / "eve" / "minidalle" / "__init__.py").write_text("raise SystemExit")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").mkdir()
    os.symlink("/etc/passwd", tmp_path / "link" / "42_tiny.ipynb")
    os.mkfifo(tmp_path / "pipe.ipynb")
    (tmp_path / "bomb.zip").write_bytes(packed(**{"42_tiny.ipynb": b" " * (intake.MAX_BYTES + 5)}))
    (tmp_path / "broken.zip").write_bytes(packed(**{"42_tiny.ipynb": GOOD})[:200])
    (tmp_path / "essay.pdf").write_bytes(b"%PDF")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "x.ipynb").write_bytes(GOOD)
    found = {s.place: s for s in intake.find(tmp_path, LESSONS)}
    said = {
        "empty": "folder is empty", "link/42_tiny.ipynb": "a link", "pipe.ipynb": "no plain file",
        "bomb/42_tiny.ipynb": "larger than", "broken.zip": "cannot be opened", "essay.pdf": "is no notebook",
    }  # fmt: skip
    assert {place: s.fault for place, s in found.items() if s.fault}.keys() == said.keys()
    assert all(part in found[place].fault for place, part in said.items())
    assert found["eve/42_tiny.ipynb"].notes == ("Not used, since no notebook of the course: 1 further file.",)


def test_folders_around_all_submissions_are_looked_into(tmp_path):
    for name in ("ada", "eve"):
        place = tmp_path / "download" / "all" / name
        place.mkdir(parents=True)
        (place / "42_tiny.ipynb").write_bytes(GOOD)
    assert {s.student for s in intake.find(tmp_path, LESSONS)} == {"ada", "eve"}
    with pytest.raises(ValueError, match="does not exist"):
        intake.find(tmp_path / "none", LESSONS)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="holds no submissions"):
        intake.find(tmp_path / "nothing", LESSONS)


def test_an_old_notebook_and_one_in_utf16_are_read():
    old = {
        "nbformat": 3,
        "worksheets": [{"cells": [{"cell_type": "code", "input": ["def area(w, h):\n", "    pass"]}]}],
    }
    parsed, fault = intake.parse(json.dumps(old).encode())
    assert not fault and intake.lesson_of(parsed, LESSONS) == tiny.NAME
    assert not intake.parse(json.dumps(SOLVED).encode("utf-16"))[1]
    assert not intake.parse(b"\xef\xbb\xbf" + GOOD)[1]


# ------------------------------------------------------------------------------------------------ marks and pages


def result(student: str, sources: dict[str, str], points=(2, 3, 4), reason="") -> grade.Graded:
    """Make what grading would have given."""
    submission = intake.Submission(student, f"{student}.ipynb", tiny.NAME, {}, account="7")
    given = [grade.Mark(e, p, "graded", reason) for e, p in zip(LESSON.exercises, points, strict=True)]
    answers = repair(tiny.filled(student_copy(LESSON), sources), LESSON)
    return grade.Graded(submission, LESSON, given, answers)


def test_no_cell_of_a_table_is_a_formula(tmp_path):
    marks.write_tables(tmp_path, [result("=cmd()", tiny.RIGHT, (0, 0, 0), "+1\n-2")], [])
    rows = table(tmp_path / "marks.csv")
    assert {row["student"] for row in rows} == {"'=cmd()"} and {row["reason"] for row in rows} == {"'+1 -2"}
    possible, canvas = table(tmp_path / "canvas.csv")
    assert (possible["Student"], possible["42_tiny"]) == ("    Points Possible", "9")
    assert (canvas["Student"], canvas["ID"], canvas["42_tiny"]) == ("'=cmd()", "7", "0")
    moodle = table(tmp_path / "moodle_42_tiny.csv")
    assert moodle[0]["Identifier"] == "Participant 7" and moodle[0]["Maximum grade"] == "9"


def test_pages_show_reasons_and_own_code_and_no_hidden_test(tmp_path):
    answer = "def area(w, h):\n    return '<script>alert(1)</script>'"
    pages.write_pages(tmp_path, [result("../<b>", tiny.RIGHT | {"42-area": answer}, (0, 1, 4), "2 by 3 is 6")], [])
    (page,) = (tmp_path / "feedback").iterdir()
    said = page.read_text() + (tmp_path / "class.html").read_text()
    assert "2 by 3 is 6" in said and "42.1: an area" in said and "&lt;script&gt;" in said
    assert "<script>" not in said and "<b>" not in said and str(tiny.SECRET) not in said
    assert pages.file_name("a/b") != pages.file_name("a.b") != pages.file_name("a b")


def test_unusual_likeness_is_told_from_the_usual():
    usual = [result(f"s{i}", {"42-area": f"def area(w, h):\n    return w * h + {i} - {i}"}) for i in range(12)]
    odd = "def area(w, h):\n    rows = [[1 for _ in range(int(w))] for _ in range(int(h))]\n    n = 0\n"
    odd += "    for row in rows:\n        for one in row:\n            n += one\n            if n > 10 ** 9:\n"
    odd += "                break\n    return n"
    renamed = odd.replace("rows", "grid").replace("one", "z").replace("n = 0", "n  =  0  # mine")
    found = alike.pairs([*usual, result("ada", {"42-area": odd}), result("eve", {"42-area": renamed})])
    assert [(a, b) for _, _, a, b, _ in found] == [("ada", "eve")]


def test_the_best_of_two_files_counts_and_both_are_said():
    first, second = result("ada", tiny.RIGHT, (0, 0, 0)), result("ada", tiny.RIGHT)
    (kept,) = grade.best_of_each([first, second])
    assert kept.points == 9 and "2 files of this lesson" in kept.answers.notes[-1]


# ------------------------------------------------------------------------------------------------ the command


def test_a_class_from_release_to_marks_with_two_commands(tmp_path, capsys):
    (tmp_path / "lessons").mkdir()
    (tmp_path / "lessons" / "42_tiny.ipynb").write_text(json.dumps(NOTEBOOK))
    shared = ["--out", str(tmp_path / "class"), "--notebooks", str(tmp_path / "lessons")]
    commands.run(["release", *shared])
    assert "Wrote 1 lesson with 9 points" in capsys.readouterr().out
    handed = json.loads((tmp_path / "class" / "release" / "42_tiny" / "42_tiny.ipynb").read_text())
    work = {
        "ada": tiny.filled(handed, tiny.RIGHT),
        "bob": tiny.filled(handed, tiny.RIGHT | {"42-pair": "ONE, TWO = 1, 7"}),
        "eve": handed,
    }
    for name, notebook in work.items():
        (tmp_path / "in" / name / "42_tiny").mkdir(parents=True)
        (tmp_path / "in" / name / "42_tiny" / "42_tiny.ipynb").write_text(json.dumps(notebook))
    (tmp_path / "roster.txt").write_text("ada\nbob\neve\nzoe\n")
    extra = ["--roster", str(tmp_path / "roster.txt"), "--jobs", "2"]
    commands.run(["grade", str(tmp_path / "in"), *shared, *extra])
    assert "missing: 1, zoe (42_tiny)" in capsys.readouterr().out
    rows = table(tmp_path / "class" / "marks" / "marks.csv")
    points = {name: [row["points"] for row in rows if row["student"] == name] for name in (*work, "zoe")}
    assert points == {"ada": ["2", "3", "4"], "bob": ["2", "1", "4"], "eve": ["0"] * 3, "zoe": ["0"] * 3}
    assert {row["status"] for row in rows if row["student"] == "zoe"} == {"missing"}
    assert (tmp_path / "class" / "feedback" / "bob.html").exists()


def test_nbgrader_finds_the_marks_in_its_gradebook(tmp_path):
    api = pytest.importorskip("nbgrader.api")
    for points in ((0, 1, 4), (2, 3, 4)):  # a second grading replaces the first
        gradebook.write_gradebook(tmp_path / "gradebook.db", [result("ada", tiny.RIGHT, points)])
    with api.Gradebook(f"sqlite:///{tmp_path / 'gradebook.db'}") as book:
        found = book.find_submission(tiny.NAME, "ada")
        assert (found.score, found.max_score, found.needs_manual_grade) == (9, 9, False)
        assert [student.id for student in book.students] == ["ada"]


def test_bad_input_ends_in_a_sentence(tmp_path):
    for arguments, said in (
        (["release", "99", "--out", str(tmp_path)], '"99" is no lesson'),
        (["grade", str(tmp_path / "none"), "--out", str(tmp_path)], "does not exist"),
        (["release", "--notebooks", str(tmp_path), "--out", str(tmp_path)], "holds no lessons"),
        (["grade", str(tmp_path), "--jobs", "0"], "--jobs is 0"),
        (["grade", str(tmp_path), "--seconds", "nan"], "--seconds is nan"),
        (["grade", str(tmp_path), "--roster", str(tmp_path / "none"), "--out", str(tmp_path)], "holds no submissions"),
    ):
        with pytest.raises(ValueError, match=said):
            commands.run(arguments)
