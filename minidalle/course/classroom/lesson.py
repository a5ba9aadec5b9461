"""A lesson as the classroom sees it: cells, exercises with parts and points, and what a student copy leaves out."""

import ast
import builtins
import copy
import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

BEGIN_SOLUTION, END_SOLUTION = "### BEGIN SOLUTION", "### END SOLUTION"
BEGIN_HIDDEN, END_HIDDEN = "### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS"
STUB = ("# YOUR CODE HERE", 'raise NotImplementedError("Your answer goes here.")')
PART = re.compile(r"^# (?P<name>[^:\n]+): (?P<points>\d+(\.\d+)?) points?$")
TITLE = re.compile(r"^#+ *(?:Exercise )?(\d\d\.\d.*)$", re.MULTILINE)


class LessonError(ValueError):
    """A notebook that is to be handed out or graded lacks what that needs."""


@dataclass(frozen=True)
class Block:
    """A piece of the tests of an exercise.

    Args:
        part: which answer it judges; empty: what all parts need.
        hidden: whether the student copy leaves it out.
        source: its code.
    """

    part: str
    hidden: bool
    source: str


@dataclass(frozen=True)
class Exercise:
    """An exercise: the cell that is answered, and the cell that judges it.

    Args:
        name: grade_id of the cell that is answered.
        test: grade_id of the cell that judges.
        title: as the lesson calls it.
        points: of all its parts.
        solution, tests: source of the two cells.
    """

    name: str
    test: str
    title: str
    points: float
    solution: str
    tests: str

    @property
    def number(self) -> str:
        """Give its number in the course, such as 01.2."""
        return self.title.split(":")[0]

    @cached_property
    def stub(self) -> str:
        """Give the cell as students get it."""
        return clear_solution(self.solution)

    @cached_property
    def functions(self) -> list[str]:
        """List the functions that an answer defines."""
        return [node.name for node in ast.parse(self.stub).body if isinstance(node, ast.FunctionDef)]

    @cached_property
    def values(self) -> list[str]:
        """List the numbers and other values that an answer sets."""
        tools = ast.Import | ast.ImportFrom | ast.ClassDef
        names = [name for node in ast.parse(self.stub).body if not isinstance(node, tools) for name in stored(node)]
        return [name for name in dict.fromkeys(names) if name not in self.functions]

    @cached_property
    def blocks(self) -> list[Block]:
        """Split the tests where a comment names a part, and where hidden ones begin and end."""
        found, part, hidden, lines = [], "", False, []

        def close() -> None:
            if any(line.strip() for line in lines):
                found.append(Block(part, hidden, "\n".join(lines)))
            lines.clear()

        for line in self.tests.splitlines():
            said = PART.match(line)
            if said or BEGIN_HIDDEN in line or END_HIDDEN in line:
                close()
                part = said["name"] if said else ""
                hidden = hidden if said else BEGIN_HIDDEN in line
            else:
                lines.append(line)
        close()
        return found

    @cached_property
    def parts(self) -> dict[str, float]:
        """Give the points of each part; one without a name where the exercise has a single answer.

        Raises: LessonError: when the parts do not add up to the points.
        """
        said = [PART.match(line) for line in self.tests.splitlines()]
        points = {match["name"]: float(match["points"]) for match in said if match}
        if points and sum(points.values()) != self.points:
            raise LessonError(
                f"exercise {self.number or self.name}: the check {self.test} has {self.points:g} points, and its parts "
                f'add up to {sum(points.values()):g}; change "points" in the metadata of its cell, or the comments '
                'such as "# (a): 1 point" in it, so that they agree.'
            )
        return points or {"": self.points}


@dataclass(frozen=True)
class Lesson:
    """A notebook with exercises.

    Args:
        name: of its file, without the ending.
        notebook: as JSON.
        exercises: in its order.
    """

    name: str
    notebook: dict
    exercises: list[Exercise] = field(default_factory=list)

    @property
    def number(self) -> str:
        """Give its two digits."""
        return self.name[:2]

    @property
    def title(self) -> str:
        """Give its first heading."""
        for cell in self.notebook["cells"]:
            if match := re.search(r"^# (.+)$", source_of(cell), re.MULTILINE):
                return match[1]
        return self.name

    @cached_property
    def own_cells(self) -> list[str]:
        """List the code of the lesson itself: no exercise, and nothing that needs the answer to one."""
        answered = {name for exercise in self.exercises for name in (*exercise.functions, *exercise.values)}
        cells = [source_of(cell) for cell in self.notebook["cells"] if is_code(cell) and not graded(cell)]
        return [source for source in cells if not loads(source) & answered]

    @cached_property
    def digest(self) -> str:
        """Give a short sum of all that a mark depends on, by which releases are told apart."""
        said = [self.own_cells, [(e.name, e.points, e.solution, e.tests) for e in self.exercises]]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]


def read_lesson(path: Path) -> Lesson:
    """Read a notebook of the course.

    Raises: LessonError: when it is no notebook, or an exercise lacks one of its two cells.
    """
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        notebook["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LessonError(f"{path} is no notebook that can be read ({error}).") from None
    return Lesson(path.stem, notebook, list(exercises_of(notebook["cells"], path.stem)))


def exercises_of(cells: list[dict], name: str):
    """Pair each cell that is answered with the next one that judges."""
    title, solution = "", None
    for cell in cells:
        marks = graded(cell)
        if match := TITLE.search(source_of(cell)) if cell["cell_type"] == "markdown" else None:
            title = match[1].strip()
        if marks and marks["solution"]:
            if solution is not None:
                raise LessonError(f"{name}: {marks['grade_id']} follows an exercise without tests.")
            solution = (marks["grade_id"], source_of(cell))
        elif marks and marks["grade"]:
            if solution is None:
                raise LessonError(f"{name}: {marks['grade_id']} judges no exercise.")
            yield Exercise(solution[0], marks["grade_id"], title, marks["points"], solution[1], source_of(cell))
            solution = None


def check_points(lesson: Lesson) -> None:
    """Refuse a lesson with an exercise whose parts do not add up to its points.

    Raises: LessonError: with what to do.
    """
    try:
        for exercise in lesson.exercises:
            _ = exercise.parts
    except LessonError as error:
        raise LessonError(f"{lesson.name}, {error}") from None


def counted(count: int, noun: str) -> str:
    """Write a number of things: 1 lesson, 2 lessons."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def source_of(cell: dict) -> str:
    """Give the source of a cell, which the format allows to be split into lines."""
    source = cell.get("source", "")
    return source if isinstance(source, str) else "".join(source)


def is_code(cell: dict) -> bool:
    """Tell whether a cell is one of code."""
    return cell.get("cell_type") == "code"


def graded(cell: dict) -> dict | None:
    """Give what nbgrader's metadata say of a cell; None where there are none."""
    marks = cell.get("metadata", {}).get("nbgrader")
    return marks if isinstance(marks, dict) else None


def clear_solution(source: str) -> str:
    """Put a stub in the place of each solution, as nbgrader does."""
    kept, inside = [], False
    for line in source.splitlines():
        if BEGIN_SOLUTION in line:
            inside = True
            indent = line[: len(line) - len(line.lstrip())]
            kept += [indent + text for text in STUB]
        elif END_SOLUTION in line:
            inside = False
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


def clear_hidden(source: str) -> str:
    """Leave out hidden tests, as nbgrader does."""
    kept, inside = [], False
    for line in source.splitlines():
        inside = inside or BEGIN_HIDDEN in line
        if not inside:
            kept.append(line)
        inside = inside and END_HIDDEN not in line
    return "\n".join(kept)


def stored(node: ast.AST) -> list[str]:
    """List the names that a statement sets at the top of a cell."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).split(".")[0] for alias in node.names]
    return [x.id for x in ast.walk(node) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)]


def loads(source: str) -> set[str]:
    """Give the names that code reads; none where it cannot be parsed."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return set()
    return {x.id for x in ast.walk(tree) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Load)}


def with_cells(lesson: Lesson, change) -> dict:
    """Copy a notebook with each cell changed, or left out where change gives None."""
    notebook = copy.deepcopy(lesson.notebook)
    notebook["cells"] = [changed for cell in notebook["cells"] if (changed := change(cell)) is not None]
    return notebook


BUILTINS = frozenset(dir(builtins))
