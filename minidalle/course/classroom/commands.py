"""`minidalle classroom release` and `minidalle classroom grade`; what they need is imported when they run."""

import argparse
import os
import sys
from pathlib import Path

OUT = "classroom"


def add_classroom(command) -> None:
    """Describe the command and its two parts.

    Args:
        command: makes a sub-command of minidalle: (name, function, summary, computes=False).
    """
    sub = command(
        "classroom", classroom, "hand out student copies of the lessons, and grade what comes back", computes=False
    )
    parts = sub.add_subparsers(dest="part", required=True, metavar="release | grade")
    release = parts.add_parser("release", help="write student copies of the lessons")
    release.add_argument("lessons", nargs="*", metavar="LESSON", help="01, or 01_scenes; all of them when not given")
    release.add_argument(
        "--seed",
        type=int,
        dest="numbers",
        metavar="SEED",
        help="draw numbers for this class; the course's own when not given",
    )
    release.add_argument("--colab", default="", help="address of the copies as Colab opens it, for the badge")
    release.add_argument("--self-study", action="store_true", help="keep every check, and fold the solutions in")
    grade = parts.add_parser("grade", help="grade a folder of submissions")
    grade.add_argument(
        "submissions", type=home, help="a folder, an archive or a notebook, from nbgrader, Moodle, Canvas or people"
    )
    grade.add_argument("--jobs", type=int, help="how many at a time; one for each core when not given")
    grade.add_argument("--seconds", type=float, default=60, help="that one answer may take (default %(default)s)")
    grade.add_argument("--memory", type=int, default=2048, help="MB beside the lesson's own (default %(default)s)")
    grade.add_argument("--roster", type=home, help="a text file with a student a line, to find who is missing")
    grade.add_argument("--gradebook", action="store_true", help="write nbgrader's gradebook.db as well")
    for each in (release, grade):
        each.add_argument("--out", type=home, default=Path(OUT), help="folder of the class (default %(default)s)")
        each.add_argument("--notebooks", type=home, help="folder of the lessons; that of the course when not given")


def home(text: str) -> Path:
    """Read the name of a file or folder; ~ is your home."""
    return Path(text).expanduser()


def classroom(args: argparse.Namespace) -> None:
    """Do what was asked."""
    (release_command if args.part == "release" else grade_command)(args)


def notebooks(given: Path | None) -> Path:
    """Find the lessons.

    Raises: ValueError: where there are none.
    """
    here = Path(__file__).resolve().parents[3] / "notebooks"
    for folder in [given] if given else [Path("notebooks"), here]:
        if any(folder.glob("[0-9][0-9]_*.ipynb")):
            return folder
    raise ValueError(f"{given or here} holds no lessons: name their folder with --notebooks.")


def class_lessons(args: argparse.Namespace, seed: int | None) -> dict:
    """Read the lessons as a class with this seed has them."""
    from minidalle.course.classroom.draws import drawn
    from minidalle.course.classroom.lesson import read_lesson

    paths = sorted(notebooks(args.notebooks).glob("[0-9][0-9]_*.ipynb"))
    lessons = {path.stem: drawn(read_lesson(path), seed) for path in paths}
    return {name: lesson for name, lesson in lessons.items() if lesson.exercises}


def release_command(args: argparse.Namespace) -> None:
    """Write the student copies."""
    from minidalle.course.classroom.lesson import counted
    from minidalle.course.classroom.release import release

    lessons = class_lessons(args, args.numbers)
    chosen = {name for asked in args.lessons for name in lessons if asked.removesuffix(".ipynb") in (name, name[:2])}
    unknown = [
        asked for asked in args.lessons if asked.removesuffix(".ipynb") not in {*lessons, *(x[:2] for x in lessons)}
    ]
    if unknown:
        raise ValueError(f'"{unknown[0]}" is no lesson with exercises; choose of {", ".join(lessons)}.')
    kept = [lesson for name, lesson in lessons.items() if name in chosen or not args.lessons]
    folder = release(kept, args.out, args.numbers, args.colab, args.self_study)
    points = sum(exercise.points for lesson in kept for exercise in lesson.exercises)
    said = f"{counted(len(kept), 'lesson')} with {points:g} point{'' if points == 1 else 's'}"
    print(f"Wrote {said} to {folder}: a folder and a ZIP for each.")


def grade_command(args: argparse.Namespace) -> None:
    """Grade, and write marks, feedback and the picture of the class."""
    from minidalle.checks import whole_number
    from minidalle.course.classroom import grade, gradebook, intake, marks, pages, roster
    from minidalle.course.classroom.release import read_class
    from minidalle.course.classroom.sandbox import Limits

    if not hasattr(os, "fork"):
        raise ValueError("Grading needs Linux or macOS: on Windows, run it in WSL.")
    if args.jobs is not None:
        whole_number(args.jobs, "--jobs", 1, 1024)
    whole_number(args.memory, "--memory", 64, 2**20)
    if not 0 < args.seconds <= 86_400:
        raise ValueError(f"--seconds is {args.seconds:g}; more than 0 and at most a day, 86400, was expected.")
    if args.gradebook:
        gradebook.check()
    told = read_class(args.out) or {"seed": None, "lessons": {}}
    lessons = class_lessons(args, told["seed"])
    found = intake.find(args.submissions, lessons)
    missing, near = roster.absent(found, args.roster, told["lessons"])
    warn_of_dropped(marks.dropped(args.out / "marks", found), args.out)
    found += missing
    limits = Limits(seconds=args.seconds, memory=args.memory << 20)
    results = grade.grade_all(found, lessons, told["seed"] or 0, args.jobs, limits, grade.to_stderr)
    odd = [s for s in found if not s.lesson]
    marks.write_tables(args.out / "marks", results, odd)
    pages.write_pages(args.out, results, odd)
    if args.gradebook:
        gradebook.write_gradebook(args.out / "gradebook.db", results)
    print(summary(results, odd, args.out, args.roster is not None))
    for name, student in near:
        print(f'On the roster, "{name}" handed in nothing; "{student}" is not on it: if they are one, correct a name.')


def warn_of_dropped(lost: dict[str, list[str]], out: Path) -> None:
    """Say, before it is too late, that marks of an earlier run are about to be replaced."""
    from minidalle.course.classroom.lesson import counted

    if lost:
        lessons = ", ".join(sorted(set().union(*lost.values())))
        sys.stderr.write(
            f"This run replaces {out / 'marks'} and {out / 'feedback'}, and drops the marks of "
            f"{counted(len(lost), 'student')} that it does not grade again ({lessons}). To keep them, stop it (Ctrl-C) "
            f"and name another --out.\n"
        )


def summary(results: list, odd: list, out: Path, roster: bool = False) -> str:
    """Say in a few lines what came out."""
    from minidalle.course.classroom.intake import MISSING
    from minidalle.course.classroom.lesson import counted

    handed = [each.submission.student for each in results if each.submission.fault not in MISSING]
    silent = len({each.submission.student for each in results}.difference(handed))
    said = f"; {silent if roster else counted(silent, 'student')}{' of the roster' if roster else ''} handed in nothing"
    graded = f"Graded {counted(len(handed), 'notebook')} of {counted(len(set(handed)), 'student')}"
    lines = [f"{graded}{said if silent else ''}."]
    for status in ("repaired", "crashed", "timed out", "unreadable", "missing"):
        here = [f"{each.submission.student} ({each.lesson.name})" for each in results if each.status == status]
        if here:
            lines.append(f"{status}: {len(here)}, {', '.join(here[:5])}{' ...' if len(here) > 5 else ''}")
    if odd:
        lines.append(f"not graded: {len(odd)}, {', '.join(s.place for s in odd[:5])}{' ...' if len(odd) > 5 else ''}")
    lines.append(f"Marks: {out / 'marks' / 'marks.csv'}. Class: {out / 'class.html'}. Feedback: {out / 'feedback'}.")
    return "\n".join(lines)


def run(words: list[str]) -> None:
    """Run what was written behind `minidalle classroom`.

    Args:
        words: such as ["release", "--seed", "7"].

    Raises: ValueError: when it cannot be done as asked. SystemExit: when it is no such command.
    """
    top = argparse.ArgumentParser(prog="minidalle")
    commands = top.add_subparsers(required=True)

    def command(name: str, run, summary: str, computes: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, description=summary)
        sub.set_defaults(run=run)
        return sub

    add_classroom(command)
    args = top.parse_args(["classroom", *words])
    args.run(args)


def main() -> None:
    """Run the command by itself: python -m minidalle.course.classroom.commands release."""
    try:
        run(sys.argv[1:])
    except (ValueError, OSError) as error:
        raise SystemExit(f"minidalle classroom: {error}") from None


if __name__ == "__main__":
    main()
