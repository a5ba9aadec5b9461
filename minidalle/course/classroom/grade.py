"""Grade what a class handed in: each notebook in processes of its own, in parallel, and nothing stops the batch."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

from minidalle.course.classroom.intake import MISSING, Submission
from minidalle.course.classroom.lesson import Exercise, Lesson, check_points
from minidalle.course.classroom.repair import Answers, repair, same
from minidalle.course.classroom.sandbox import LEVELS, Limits
from minidalle.course.classroom.session import Kernel, KernelError, StudentProcess

ADDED = "added"  # the cell of what a student defined beside the answers
ENDED = ("crashed", "timed out")
QUIET, NAMED = 5.0, 5  # seconds without progress, after which so many of the notebooks that still run are named
NOT_ATTEMPTED = "Not attempted: the answer is still to be written."


@dataclass(frozen=True)
class Mark:
    """What one answer got.

    Args:
        exercise: which one.
        points: out of exercise.points.
        status: graded, repaired, crashed, timed out, unreadable or missing.
        reason: why points are missing; empty where none are.
    """

    exercise: Exercise
    points: float
    status: str
    reason: str = ""


@dataclass
class Graded:
    """What one notebook got.

    Args:
        submission: what was handed in.
        lesson: of which it is.
        marks: one for each exercise.
        answers: what was taken from it.
        seconds: of a processor that it took.
    """

    submission: Submission
    lesson: Lesson
    marks: list[Mark]
    answers: Answers = field(default_factory=Answers)
    seconds: float = 0.0

    @property
    def points(self) -> float:
        """Add up."""
        return sum(mark.points for mark in self.marks)

    @property
    def status(self) -> str:
        """Give the worst status of its exercises."""
        order = ("unreadable", "missing", "crashed", "timed out", "repaired", "graded")
        found = {mark.status for mark in self.marks} | ({"repaired"} if self.answers.notes else set())
        return next(status for status in order if status in found or status == "graded")


def grade_all(
    submissions: list[Submission],
    lessons: dict[str, Lesson],
    seed: int = 0,
    jobs: int | None = None,
    limits: Limits | None = None,
    told: Callable[[str], None] = lambda line: None,
) -> list[Graded]:
    """Grade all submissions.

    Args:
        submissions: from intake.
        lessons: by name; only those that occur are run.
        seed: of the numbers that hidden tests draw.
        jobs: how many at a time; None: one for each core.
        limits: of one student's process.
        told: takes a line on how far it is.

    Raises: LessonError: when the points of a lesson that was handed in do not add up; nothing is graded then.
    """
    for name in {s.lesson for s in submissions if s.lesson}:
        check_points(lessons[name])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs, limits = jobs or cores, limits or Limits()
    results = [failed(s, lessons) for s in submissions if s.notebook is None and s.lesson]
    for name, lesson in lessons.items():
        todo = [s for s in submissions if s.notebook is not None and s.lesson == name]
        if todo:
            results += grade_lesson(lesson, todo, seed, jobs, limits, told)
    return best_of_each(results)


def grade_lesson(lesson, todo: list[Submission], seed: int, jobs: int, limits: Limits, told) -> list[Graded]:
    """Grade all notebooks of one lesson, which is run once."""
    started = time.perf_counter()
    told(f"{lesson.name}: running the lesson once ...")
    results, repaired = [], [repair(s.notebook, lesson) for s in todo]
    try:
        kernel = started_kernel(lesson, repaired)
    except KernelError as error:
        told(str(error))
        return [failed(replace(s, notebook=None, fault=str(error)), {lesson.name: lesson}) for s in todo]
    if (level := kernel.ready()["level"]) != LEVELS[0]:
        told(f"Isolation of students' code: {level}. docs/teaching.md says what that does not stop.\n")
    with kernel, ThreadPoolExecutor(jobs) as pool:
        waiting = {
            pool.submit(grade_notebook, kernel, s, answers, seed, limits): s
            for s, answers in zip(todo, repaired, strict=True)
        }

        def far() -> str:
            return f"{lesson.name}: {len(results)} of {len(todo)}, {time.perf_counter() - started:.0f} s"

        for done in finished(waiting, lambda names: told(f"{far()}; still running: {names}")):
            try:
                results.append(done.result())
            except Exception as error:  # a fault of the grader's own must not take the others' marks
                fault = f"the grader failed ({type(error).__name__}: {error}); report it"
                results.append(failed(replace(waiting[done], notebook=None, fault=fault), {lesson.name: lesson}))
            told(far())
    return results


def finished(waiting: dict[Future, Submission], told: Callable[[str], None]) -> Iterator[Future]:
    """Give each notebook when it is graded; where none is for long, name those that run, ever more seldom."""
    left, quiet = set(waiting), QUIET
    while left:
        done, left = wait(left, quiet, FIRST_COMPLETED)
        yield from done
        if not done:
            names = [waiting[each].student for each in waiting if each in left and each.running()]
            told(", ".join(names[:NAMED]) + (" ..." if len(names) > NAMED else ""))
        quiet = QUIET if done else 2 * quiet


def started_kernel(lesson: Lesson, repaired: list[Answers]) -> Kernel:
    """Run what the exercises and the answers need of a lesson; all of it where that does not run alone."""
    sources = [source for answers in repaired for source in (*answers.sources.values(), *answers.added) if source]
    for needs in (sources, None):
        kernel = Kernel(lesson, needs)
        try:
            kernel.ready()
            return kernel
        except KernelError:
            kernel.close()
            if needs is None:
                raise
    raise AssertionError


def failed(submission: Submission, lessons: dict[str, Lesson]) -> Graded:
    """Give the marks of what cannot be graded."""
    lesson = lessons[submission.lesson]
    status = "missing" if submission.fault in MISSING else "unreadable"
    return Graded(submission, lesson, [Mark(e, 0, status, sentence(submission.fault)) for e in lesson.exercises])


def sentence(text: str) -> str:
    """Begin with a capital and end with a stop."""
    return text[:1].upper() + text[1:].rstrip(".") + "." if text else ""


def grade_notebook(kernel: Kernel, submission: Submission, answers: Answers, seed: int, limits: Limits) -> Graded:
    """Grade one notebook; a process that an answer ends is started again for the other answers."""
    lesson, seconds = kernel.lesson, 0.0
    stamp_note(submission, lesson, answers)
    marks = {e.name: untried(e, answers) for e in lesson.exercises}
    todo = [e for e in lesson.exercises if marks[e.name] is None]
    cells = [(e.name, answers.sources[e.name]) for e in todo]
    if answers.added:
        cells.insert(0, (ADDED, "\n\n".join(answers.added)))
    while todo:
        process = StudentProcess(kernel, cells, limits)
        ended = process.ended_in
        for exercise in list(todo) if ended is None else []:
            todo.remove(exercise)
            verdicts = process.mark(exercise, seed)
            marks[exercise.name] = judged(exercise, verdicts, process.faults.get(exercise.name), answers)
            if marks[exercise.name].status in ENDED:
                break
        process.close()
        seconds += process.seconds
        if ended is not None:
            cells = [cell for cell in cells if cell[0] != ended]
            lost = [e for e in todo if e.name == ended or ended == ""]
            marks |= {e.name: stopped(e, process.why) for e in lost}
            todo = [e for e in todo if e not in lost]
    return Graded(submission, lesson, list(marks.values()), answers, seconds)


def stamp_note(submission: Submission, lesson: Lesson, answers: Answers) -> None:
    """Say it when a notebook belongs to another release than the one that it is graded by."""
    stamp = submission.notebook.get("metadata", {})
    stamp = stamp.get("minidalle") if isinstance(stamp, dict) else None
    release = stamp.get("release") if isinstance(stamp, dict) else None
    if release and release != lesson.digest:
        answers.notes.append(
            f"It is of the release {str(release)[:12]} and was graded by {lesson.digest}: its questions may differ."
        )


def untried(exercise: Exercise, answers: Answers) -> Mark | None:
    """Give the mark of what need not be run; None where there is an answer."""
    source = answers.sources[exercise.name]
    if source is None:
        return Mark(exercise, 0, "missing", "The cell of the answer is not there.")
    if same(source, exercise.stub) or not source.strip():
        return Mark(exercise, 0, status_of(exercise, answers), NOT_ATTEMPTED)
    return None


def status_of(exercise: Exercise, answers: Answers) -> str:
    """Tell whether an answer had to be found or chosen."""
    return "repaired" if exercise.name in answers.damaged else "graded"


def stopped(exercise: Exercise, why: str) -> Mark:
    """Give the mark of a cell that ended its process."""
    slow = "Running the cell takes too long."
    return Mark(exercise, 0, why, slow if why == "timed out" else "Running the cell ended its process.")


def judged(exercise: Exercise, verdicts: dict[str, dict], fault: list | None, answers: Answers) -> Mark:
    """Turn the verdicts of the parts into a mark."""
    if not verdicts:
        return Mark(exercise, exercise.points, status_of(exercise, answers))
    points = 0.0 if "" in verdicts else sum(p for part, p in exercise.parts.items() if part not in verdicts)
    status = next((v["status"] for v in verdicts.values() if v["status"] != "graded"), status_of(exercise, answers))
    lost = verdicts.get("") or next(iter(verdicts.values()))
    named = [f"{part}: {v['reason']}" for part, v in verdicts.items() if part]
    reason = lost["reason"] if "" in verdicts or not named else " ".join(named)
    if fault and "is not defined" in reason:
        kind, message, line = (*fault, None, None, None)[:3]
        if kind == "TooLong":
            return stopped(exercise, "timed out")
        where = f" in line {line}" if line else ""
        reason = NOT_ATTEMPTED if kind == "NotImplementedError" else f"The cell stops with {kind}{where}: {message}"
    return Mark(exercise, points, status, reason)


def best_of_each(results: list[Graded]) -> list[Graded]:
    """Keep one notebook for each student and lesson: the one with the most points, and say that there were more."""
    kept: dict[tuple[str, str], Graded] = {}
    counts: dict[tuple[str, str], int] = {}
    for each in sorted(results, key=lambda g: (g.submission.notebook is None, -g.points, g.submission.place)):
        key = each.submission.student, each.lesson.name
        kept.setdefault(key, each)
        counts[key] = counts.get(key, 0) + 1
    for key, each in kept.items():
        if counts[key] > 1:
            place = each.submission.place
            each.answers.notes.append(f"{counts[key]} files of this lesson were handed in; the best counts: {place}.")
    return sorted(kept.values(), key=lambda g: (*by_name(g.submission.student), g.lesson.name))


def by_name(student: str) -> tuple[str, str]:
    """Give what students are sorted by: capitals do not count."""
    return student.casefold(), student


def to_stderr(line: str) -> None:
    """Show how far it is, in one line."""
    sys.stderr.write(f"\r\x1b[K{line}" if sys.stderr.isatty() else f"{line}\n")
    sys.stderr.flush()
