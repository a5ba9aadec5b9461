"""What an instructor sees of a class: who is who, what is refused, what is told meanwhile, and the picture."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import classroom_lesson as tiny
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidalle.course.classroom import commands, grade, intake, pages, roster
from minidalle.course.classroom.lesson import Lesson, exercises_of
from minidalle.course.classroom.release import student_copy
from minidalle.course.classroom.repair import Answers, repair
from minidalle.course.classroom.sandbox import Limits

NOTEBOOK = tiny.notebook()
LESSON = Lesson(tiny.NAME, NOTEBOOK, list(exercises_of(NOTEBOOK["cells"], tiny.NAME)))
LESSONS = {tiny.NAME: LESSON}
SOLVED = tiny.filled(student_copy(LESSON), tiny.RIGHT)
GOOD = json.dumps(SOLVED)
NAMED = GOOD.replace('STUDENT = \\"\\"', 'STUDENT = \\"Ada\\"')
NOBODY = "it names no student"


def result(student: str, points=(2, 3, 4), status="graded", reason="", fault="") -> grade.Graded:
    """Make what grading would have given."""
    submission = intake.Submission(student, f"{student}.ipynb", tiny.NAME, None if fault else {}, fault)
    given = [grade.Mark(e, p, status, reason) for e, p in zip(LESSON.exercises, points, strict=True)]
    answers = Answers() if fault else repair(SOLVED, LESSON)
    return grade.Graded(submission, LESSON, given, answers)


@pytest.fixture
def course(tmp_path) -> list[str]:
    """Write a folder of lessons; give the options that name it and the folder of the class."""
    (tmp_path / "lessons").mkdir()
    (tmp_path / "lessons" / "42_tiny.ipynb").write_text(json.dumps(NOTEBOOK))
    return ["--out", str(tmp_path / "class"), "--notebooks", str(tmp_path / "lessons")]


def hand_in(folder: Path, *students: str) -> str:
    """Write a folder with the same notebook of each student."""
    for name in students:
        (folder / name).mkdir(parents=True)
        (folder / name / "42_tiny.ipynb").write_text(GOOD)
    return str(folder)


# ------------------------------------------------------------------------------------------------ points


def test_points_that_do_not_add_up_are_refused_before_anything_is_written_or_graded(tmp_path, course):
    wrong = tiny.notebook()
    wrong["cells"][9]["metadata"]["nbgrader"]["points"] = 7
    (tmp_path / "lessons" / "42_tiny.ipynb").write_text(json.dumps(wrong))
    said = r"42_tiny, exercise 42\.2: .*7 points.*add up to 3.*so that they agree\.$"
    with pytest.raises(ValueError, match=said):
        commands.run(["release", *course])
    with pytest.raises(ValueError, match=said):
        commands.run(["grade", hand_in(tmp_path / "in", "ada"), *course])
    assert not (tmp_path / "class").exists()


def test_half_points_count_and_a_part_has_one_number_of_points():
    cells = tiny.notebook()["cells"]
    cells[9]["source"] = cells[9]["source"].replace("2 points", "2.5 points")
    cells[9]["metadata"]["nbgrader"]["points"] = 3.5
    exercise = list(exercises_of(cells, tiny.NAME))[1]
    assert exercise.parts == {"one": 1.0, "two": 2.5} and {b.part for b in exercise.blocks} == {"one", "two"}


# ------------------------------------------------------------------------------------------------ names


def test_a_students_own_folder_names_the_student(tmp_path):
    place = hand_in(tmp_path / "hw1", "dan")
    (tmp_path / "hw1" / "dan" / "essay.pdf").write_bytes(b"%PDF")
    (found,) = intake.find(Path(place) / "dan", LESSONS)
    assert (found.student, found.lesson, found.fault) == ("dan", tiny.NAME, "") and found.notes
    nested = tmp_path / "nested" / "eve" / "42_tiny"
    nested.mkdir(parents=True)
    (nested / "42_tiny.ipynb").write_text(GOOD)
    assert [s.student for s in intake.find(nested.parent, LESSONS)] == ["eve"]


@pytest.mark.parametrize("names", [["42_tiny.ipynb", "42_tiny (1).ipynb"], ["42_tiny (1).ipynb", "ada/42_tiny.ipynb"]])
def test_nobody_is_called_like_a_lesson(names, tmp_path):
    for name in names:
        (tmp_path / "hw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hw" / name).write_text(GOOD)
    found = intake.find(tmp_path / "hw", LESSONS)
    assert all(s.student in ("", "ada") and bool(s.student) == bool(s.lesson) for s in found)
    odd = [s for s in found if not s.lesson]
    assert odd and all(NOBODY in s.fault and "STUDENT" in s.fault and "folder" in s.fault for s in odd)


def test_a_broken_notebook_of_nobody_is_odd_and_a_copy_from_colab_is_no_student(tmp_path):
    (tmp_path / "eve").mkdir()
    (tmp_path / "eve" / "x.ipynb").write_text(GOOD)
    (tmp_path / "42_tiny (2).ipynb").write_text(GOOD[:3000])
    (tmp_path / "Copy of 42_tiny.ipynb").write_text(NAMED)
    found = {s.place: s for s in intake.find(tmp_path, LESSONS)}
    assert found["Copy of 42_tiny.ipynb"].student == "Ada"
    broken = found["42_tiny (2).ipynb"]
    assert not broken.student and not broken.lesson and "cut off" in broken.fault and NOBODY in broken.fault


def test_a_notebook_given_alone_needs_a_name(tmp_path):
    (tmp_path / "42_tiny.ipynb").write_text(GOOD)
    (found,) = intake.find(tmp_path / "42_tiny.ipynb", LESSONS)
    assert not found.lesson and NOBODY in found.fault
    (tmp_path / "42_tiny.ipynb").write_text(NAMED)
    assert intake.find(tmp_path / "42_tiny.ipynb", LESSONS)[0].student == "Ada"


@pytest.mark.parametrize(
    "student", ["bensonben", "benson_ben", "Benson, Ben", "ben.benson", "BEN BENSON", "benbenson", "Ben  Benson"]
)
def test_a_student_is_found_on_the_roster_however_it_is_written(student, tmp_path):
    (tmp_path / "names.txt").write_text("Ben Benson\nZoe Z\n", encoding="utf-8-sig")
    found = [intake.Submission(student, "x", tiny.NAME, {})]
    missing, near = roster.absent(found, tmp_path / "names.txt", {})
    assert [s.student for s in missing] == ["Zoe Z"] and not near


def test_near_misses_are_listed_and_two_people_stay_two(tmp_path):
    (tmp_path / "names.txt").write_text("Ben Bensen\nDélia Ôz\nAda Lee\nLee Ada\n")
    found = [intake.Submission(name, "x", tiny.NAME, {}) for name in ("Ben Benson", "ozdelia", "Ada Lee")]
    missing, near = roster.absent(found, tmp_path / "names.txt", {})
    assert [s.student for s in missing] == ["Ben Bensen", "Lee Ada"]
    assert near == [("Ben Bensen", "Ben Benson")]


@given(st.lists(st.text(st.sampled_from("abcdeé'"), min_size=1, max_size=6), min_size=1, max_size=4), st.randoms())
def test_the_order_of_the_parts_of_a_name_does_not_matter(parts, rng):
    turned = rng.sample(parts, len(parts))
    known = roster.spellings(" ".join(parts))
    assert known == roster.spellings(", ".join(turned).upper())
    assert roster.spellings("".join(turned)) <= known


def test_two_spellings_of_a_student_are_not_missing_in_what_the_other_handed_in(tmp_path):
    (tmp_path / "names.txt").write_text("Ben Benson\n")
    found = [intake.Submission("bensonben", "x", "a", {}), intake.Submission("Ben Benson", "x", "b", {})]
    assert roster.absent(found, tmp_path / "names.txt", {})[0] == []


# ------------------------------------------------------------------------------------------------ what is told


def test_a_run_counts_what_was_handed_in_and_drops_what_an_earlier_run_left(tmp_path, course, capsys):
    (tmp_path / "names.txt").write_text("Ada\nben\nZoe\n")
    commands.run(["release", *course])
    assert "Wrote 1 lesson with 9 points" in capsys.readouterr().out
    commands.run(["grade", hand_in(tmp_path / "in", "ada", "Ben"), *course, "--roster", str(tmp_path / "names.txt")])
    said = capsys.readouterr()
    assert "Graded 2 notebooks of 2 students; 1 of the roster handed in nothing." in said.out
    assert "replaces" not in said.err
    feedback = tmp_path / "class" / "feedback"
    (feedback / "mine.html").write_text("<p>a note of the teacher</p>")
    (tmp_path / "class" / "marks" / "mine.csv").write_text("1\n")
    assert {p.name for p in feedback.iterdir()} == {"ada.html", "Ben.html", "Zoe.html", "mine.html"}
    commands.run(["grade", hand_in(tmp_path / "late", "ada"), *course])
    said = capsys.readouterr()
    assert "Graded 1 notebook of 1 student.\n" in said.out
    assert re.search(r"replaces .*marks of 1 student .*42_tiny.*another --out", said.err)
    assert {p.name for p in feedback.iterdir()} == {"ada.html", "mine.html"}
    assert (tmp_path / "class" / "marks" / "mine.csv").exists()


def test_worksheets_of_lessons_that_this_run_has_not_are_removed(tmp_path):
    from minidalle.course.classroom import marks

    marks.write_tables(tmp_path, [result("ada")], [])
    (tmp_path / "moodle_41_old.csv").write_bytes((tmp_path / "moodle_42_tiny.csv").read_bytes())
    (tmp_path / "moodle_download.csv").write_text("Identifier,Full name,Email address\n")
    marks.write_tables(tmp_path, [result("ada")], [])
    kept = {path.name for path in tmp_path.glob("moodle*")}
    assert kept == {"moodle_42_tiny.csv", "moodle_download.csv"}


def test_notebooks_that_run_long_are_named_meanwhile(monkeypatch):
    monkeypatch.setattr(grade, "QUIET", 0.2)
    slow = tiny.filled(SOLVED, {"42-area": "import time\ntime.sleep(1.5)\n" + tiny.AREA})
    lines: list[str] = []
    todo = [intake.Submission("slow one", "", tiny.NAME, slow)]
    (graded,) = grade.grade_all(todo, LESSONS, jobs=1, limits=Limits(seconds=10), told=lines.append)
    assert graded.points == 9 and any("0 of 1" in line and line.endswith("still running: slow one") for line in lines)


# ------------------------------------------------------------------------------------------------ the picture


CASES = {
    "full": (result("full"), "2"),
    "wrong": (result("wrong", (0, 0, 0), reason="2 by 3 is 6"), "×"),
    "not tried": (result("not tried", (0, 0, 0), reason=grade.NOT_ATTEMPTED), "–"),
    "missing": (result("missing", (0, 0, 0), "missing", fault=intake.NOTHING), "?"),
    "unreadable": (result("unreadable", (0, 0, 0), "unreadable", fault="the file is empty"), "?"),
    "slow": (result("slow", (0, 0, 0), "timed out", "The answer takes too long."), "T"),
    "crashed": (result("crashed", (0, 0, 0), "crashed", "The answer ended its own process."), "!"),
}


def test_the_picture_is_a_file_of_its_own_with_signs_labels_totals_and_a_legend(tmp_path):
    odd = result("b\x1bz <&", (1, 3, 4), reason="\x00 a < b")
    pages.write_pages(tmp_path, [*(each for each, _ in CASES.values()), odd], [])
    drawing = (tmp_path / "class.svg").read_text(encoding="utf-8")
    svg = ElementTree.fromstring(drawing)
    assert svg.tag == "{http://www.w3.org/2000/svg}svg" and drawing.strip() in (tmp_path / "class.html").read_text()
    groups = {group.get("data-student"): group for group in svg.iter() if group.get("data-student")}
    for name, (_, sign) in CASES.items():
        texts = ["".join(t.itertext()) for t in groups[name].iter() if t.tag.endswith("text")]
        assert texts[0] == name and texts[1] == sign and texts[-1] == ("9" if name == "full" else "0")
    said = ["".join(t.itertext()) for t in svg.iter() if t.tag.endswith("text")]
    assert {"42.1", "42.2", "42.3", "of 9"} <= set(said)
    assert all(any(word in text for text in said) for word in ("wrong", "not attempted", "timed out", "unreadable"))


def test_only_what_recurs_is_listed_and_names_are_sorted_without_case(tmp_path):
    reasons = {"bob": "area is 7", "Ada": "area is 8", "carl": "once alone"}
    results = [result(name, (0, 3, 4), reason=reason) for name, reason in reasons.items()]
    assert [each.submission.student for each in grade.best_of_each(results)] == ["Ada", "bob", "carl"]
    pages.write_pages(tmp_path, results, [])
    page = (tmp_path / "class.html").read_text()
    table = page[page.index("<h2>Exercises</h2>") : page.index("<h2>What was odd</h2>")]
    assert "2 × area is …" in table and "once alone" not in table
    places = [page.index(f'data-student="{name}"') for name in ("Ada", "bob", "carl")]
    assert places == sorted(places)


def test_an_exercise_without_points_breaks_no_picture(tmp_path):
    import dataclasses

    free = dataclasses.replace(LESSON.exercises[0], points=0)
    each = result("ada")
    each.marks[0] = grade.Mark(free, 0, "graded")
    pages.write_pages(tmp_path, [each], [])
    assert (tmp_path / "class.svg").exists()
