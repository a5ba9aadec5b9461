"""Bring a handed-in notebook back to its release: which cell answers which exercise, what was damaged, what was added.

Only answers are taken from a notebook. Everything else (the lesson, the tests, the points) comes from the release,
so a cell that was deleted, doubled, moved or forged changes nothing; it is only said.
"""

import ast
import re
import symtable
from collections import Counter
from dataclasses import dataclass, field

from minidalle.course.classroom.lesson import (
    BUILTINS,
    Exercise,
    Lesson,
    counted,
    graded,
    is_code,
    loads,
    source_of,
    stored,
)

STUDENT = re.compile(r"""^STUDENT *= *(["'])(?P<name>.{1,80}?)\1""", re.MULTILINE)  # of the hand-in cell


@dataclass
class Answers:
    """What a notebook answers.

    Args:
        sources: of each exercise by its name; None where its cell is gone.
        notes: what was put right, a sentence each.
        damaged: exercises whose cell had to be found or chosen.
        added: code of the student's own that the answers need, by the cell it comes from.
        handed_in_by: the name in the hand-in cell.
    """

    sources: dict[str, str | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)
    added: list[str] = field(default_factory=list)
    handed_in_by: str = ""


def repair(notebook: dict, lesson: Lesson) -> Answers:
    """Find the answers in a notebook.

    Args:
        notebook: as JSON, in any state.
        lesson: what was handed out.
    """
    cells = [cell for cell in notebook["cells"] if isinstance(cell, dict)]
    found = Answers()
    used: set[int] = set()
    for exercise in lesson.exercises:
        found.sources[exercise.name] = choose(exercise, cells, used, found)
    check_tests(lesson, cells, found)
    rest = [source_of(cell) for i, cell in enumerate(cells) if i not in used and is_code(cell)]
    for source in rest:
        if match := STUDENT.search(source):
            found.handed_in_by = match["name"].strip()
    check_lesson(lesson, cells, used, found)
    found.added = helpers(lesson, found, [source for source in rest if not STUDENT.search(source)])
    found.notes = together(lesson, found.notes)
    return found


def together(lesson: Lesson, notes: list[str]) -> list[str]:
    """Say once what holds for several exercises."""
    numbers: dict[str, list[str]] = {}
    for note in notes:
        own = next((e for e in lesson.exercises if note.startswith(f"{e.title}: ")), None)
        text = note.removeprefix(f"{own.title}: ") if own else note
        numbers.setdefault(text, []).extend([own.number] if own else [])
    return [f"{', '.join(which)}: {text}" if which else text for text, which in numbers.items()]


def choose(exercise: Exercise, cells: list[dict], used: set[int], found: Answers) -> str | None:
    """Choose the cell that answers an exercise: by its mark, else by what it defines."""
    wanted = {*exercise.functions, *exercise.values}
    marked = [i for i, cell in enumerate(cells) if (graded(cell) or {}).get("grade_id") == exercise.name]
    own = [i for i in marked if wanted & defined(source_of(cells[i]))] or marked
    by_name = not own
    if by_name:
        ours = {e.name for e in (exercise,)}
        own = [
            i
            for i, cell in enumerate(cells)
            if i not in used and is_code(cell) and wanted <= defined(source_of(cell))
            and ((graded(cell) or {}).get("grade_id") in (None, *ours))
        ]  # fmt: skip
    used.update(marked, own)
    if not own:
        found.damaged.add(exercise.name)
        found.notes.append(f"{exercise.title}: the cell of the answer is gone.")
        return None
    written = [i for i in own if not same(source_of(cells[i]), exercise.stub)] or own
    if by_name:
        found.damaged.add(exercise.name)
        found.notes.append(f"{exercise.title}: the cell had lost its mark and was found by what it defines.")
    if len({*own, *marked}) > 1:
        found.damaged.add(exercise.name)
        which = "the last one that was written counts" if len(written) > 1 else "the one that was written counts"
        found.notes.append(f"{exercise.title}: its cell is there {len({*own, *marked})} times; {which}.")
    if not is_code(cells[written[-1]]):
        found.damaged.add(exercise.name)
        found.notes.append(f"{exercise.title}: its cell had become text and was taken as code again.")
    return source_of(cells[written[-1]])


def check_tests(lesson: Lesson, cells: list[dict], found: Answers) -> None:
    """Say which cells that judge are gone, doubled or changed; those of the release are used in any case."""
    from minidalle.course.classroom.release import test_cell

    ids = Counter((graded(cell) or {}).get("grade_id") for cell in cells)
    by_id = {(graded(cell) or {}).get("grade_id"): cell for cell in cells if graded(cell)}
    for exercise in lesson.exercises:
        if not ids[exercise.test]:
            found.notes.append(f"{exercise.title}: its check was gone and was put back.")
        elif ids[exercise.test] > 1:
            found.notes.append(
                f"{exercise.title}: its check was there {ids[exercise.test]} times; that of the release counts."
            )
        elif not same(source_of(by_id[exercise.test]), test_cell(exercise)):
            found.notes.append(f"{exercise.title}: its check was changed and was put back.")
    known = {name for e in lesson.exercises for name in (e.name, e.test)}
    forged = [cell for cell in cells if (graded(cell) or {}).get("grade_id") not in (*known, None)]
    forged = [cell for cell in forged if graded(cell).get("grade") or graded(cell).get("solution")]
    if forged:
        found.notes.append(f"Left out: {counted(len(forged), 'cell')} with marks of another or of no exercise.")


def check_lesson(lesson: Lesson, cells: list[dict], used: set[int], found: Answers) -> None:
    """Say how many of the lesson's own cells are changed or gone; those of the release are used in any case."""
    there = Counter(normal(source_of(cell)) for cell in cells if is_code(cell))
    lost = sum(1 for source in lesson.own_cells if not there[normal(source)])
    if lost:
        found.notes.append(
            f"{lost} of the lesson's own cells {'was' if lost == 1 else 'were'} changed or gone; the release's count."
        )


def helpers(lesson: Lesson, found: Answers, added: list[str]) -> list[str]:
    """Collect what answers use and only the student's further cells define, in the order of the notebook.

    A cell for trying things out does not count: not what it prints, and not a name of Python or of the lesson that it
    sets anew.
    """
    answers = [source for source in found.sources.values() if source]
    known = BUILTINS.union(*map(defined, lesson.own_cells), *map(defined, answers))
    own = {normal(source) for source in lesson.own_cells}
    further = [source for source in added if normal(source) not in own]
    statements = [node for source in further for node in parsed(source) if not isinstance(node, ast.Expr)]
    needed = set().union(*map(uses, answers)) - known
    kept: set[int] = set()
    while True:
        more = {i for i, node in enumerate(statements) if i not in kept and (set(stored(node)) & needed or stars(node))}
        more = more if needed else set()
        if not more:
            return [ast.unparse(statements[i]) for i in sorted(kept)]
        kept |= more
        needed |= set().union(*(uses(ast.unparse(statements[i])) for i in more)) - known


def uses(source: str) -> set[str]:
    """Give the names that code takes from outside: not those that are local to its functions."""
    try:
        table = symtable.symtable(source, "answer", "exec")
    except (SyntaxError, ValueError, RecursionError):
        return loads(source)
    names = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced()}
    scopes = table.get_children()
    while scopes:
        scope = scopes.pop()
        names |= {symbol.get_name() for symbol in scope.get_symbols() if symbol.is_global()}
        scopes += scope.get_children()
    return names


def stars(node: ast.AST) -> bool:
    """Tell whether a statement imports names that it does not list."""
    return isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)


def parsed(source: str) -> list[ast.stmt]:
    """Give the statements of a cell; lines for IPython are left out."""
    lines = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!", "?"))]
    try:
        return ast.parse("\n".join(lines)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def defined(source: str) -> set[str]:
    """Give the names that a cell sets; where it cannot be parsed, those that it seems to set."""
    names = {name for node in parsed(source) for name in stored(node)}
    return names or set(re.findall(r"^(?:def |class )?(\w+)(?: *=[^=]| *\(.*\) *:)", source, re.MULTILINE))


def normal(source: str) -> str:
    """Give a source without what editors change by themselves."""
    return "\n".join(line.rstrip() for line in source.replace("\r\n", "\n").strip().splitlines())


def same(a: str, b: str) -> bool:
    """Tell whether two sources differ in nothing that counts."""
    return normal(a) == normal(b)
