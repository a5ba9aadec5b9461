"""Which statements of a lesson its exercises need: the rest draws and trains for the eye, and would cost minutes.

A statement is kept where something that is needed takes a name from it, and where it changes such a name in place. A
function takes what its names stand for when it is called, so the last cell of all that sets such a name is kept.
"""

import ast
import symtable
from collections.abc import Iterator

from minidalle.course.classroom.lesson import stored

SHOWING = ("print", "display", "figures", "course", "widgets")  # change nothing that is handed to them


def slice_of(cells: list[str], names: set[str]) -> list[int]:
    """Choose the cells that leave these names as running all cells would.

    Args:
        cells: code, in order.
        names: that are needed at the end.

    Returns: their indices.
    """
    trees = [parse(source) for source in cells]
    sets = [set(stored_by(tree)) for tree in trees]
    imported = {name for tree in trees for name in imported_by(tree)}  # calling these shows or seeds
    changes = [changed_by(tree) - imported for tree in trees]
    end = len(cells)
    waiting, seen = [(name, end) for name in names], set()
    kept = {i for i, tree in enumerate(trees) if any(starred(node) for node in tree.body)}
    waiting += [use for i in kept for use in uses_at(trees[i], cells[i], i, end)]
    while waiting:
        name, before = waiting.pop()
        if (name, before) in seen:
            continue
        seen.add((name, before))
        source = max((i for i in range(before) if name in sets[i]), default=None)
        found = [] if source is None else [source]
        found += [i for i in range(source or 0, before) if name in changes[i]]
        for i in found:
            if i not in kept:
                kept.add(i)
                waiting += uses_at(trees[i], cells[i], i, end)
    return sorted(kept)


def statements(cells: list[str]) -> list[str]:
    """Take cells apart into the statements at their top."""
    return [ast.unparse(node) for source in cells for node in parse(source).body]


def parse(source: str) -> ast.Module:
    """Parse a cell; lines for IPython are left out."""
    lines = ["pass" if line.strip().startswith(("%", "!")) else line for line in source.splitlines()]
    indents = [source_line[: len(source_line) - len(source_line.lstrip())] for source_line in source.splitlines()]
    return ast.parse("\n".join(i + "pass" if x == "pass" else x for i, x in zip(indents, lines, strict=True)))


def stored_by(tree: ast.Module) -> list[str]:
    """List the names that a cell leaves behind."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and not in_function(tree, node):
            names += stored(node)
    return names


def in_function(tree: ast.Module, node: ast.stmt) -> bool:
    """Tell whether a statement stands in the body of a function or class of a cell."""
    return id(node) in hidden_statements(tree)


def hidden_statements(tree: ast.Module) -> set[int]:
    """Find the statements that run only when a function is called, or in a class."""
    if not hasattr(tree, "hidden"):
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
        tree.hidden = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, kinds)
            for inner in ast.walk(node)
            if inner is not node and isinstance(inner, ast.stmt)
        }
    return tree.hidden


def starred(node: ast.stmt) -> bool:
    """Tell whether a statement imports names that it does not list."""
    return isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)


def changed_by(tree: ast.Module) -> set[str]:
    """Find names whose object code changes in place: by a call for its effect, or by an item that is set."""
    found = set()
    for node in ast.walk(tree):
        call = node.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else None
        if call and root(call) not in SHOWING:
            found.update(map(root, [call.func, *call.args, *(each.value for each in call.keywords)]))
        if isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            found.add(root(node))
    return found - {None, "super"}


def imported_by(tree: ast.Module) -> set[str]:
    """Give the names that a cell imports."""
    return {name for x in ast.walk(tree) if isinstance(x, ast.Import | ast.ImportFrom) for name in stored(x)}


def root(node: ast.AST) -> str | None:
    """Give the name that an expression such as a.b[c].d begins with."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def uses_at(tree: ast.Module, source: str, place: int, end: int) -> list[tuple[str, int]]:
    """List the names that a cell takes from others, and up to where those count."""
    own, uses = set(), []
    for node in tree.body:
        loaded = {x.id for x in at_once(node) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Load)}
        simple = isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign)
        inner = set() if simple else set(stored(node))
        for each in at_once(node):
            if isinstance(each, ast.comprehension):
                inner.update(x.id for x in ast.walk(each.target) if isinstance(x, ast.Name))
        uses += [(name, place) for name in loaded - own - inner]
        own |= set(stored(node))
    return uses + [(name, end) for name in late_names(source) - own]


def at_once(node: ast.AST) -> Iterator[ast.AST]:
    """Walk through what runs when a statement runs: not through the bodies of its functions."""
    yield node
    body = (*node.body,) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else ()
    if isinstance(node, ast.Lambda):
        body = (node.body, node.args)
    for child in ast.iter_child_nodes(node):
        if child not in body:
            yield from at_once(child)


def late_names(source: str) -> set[str]:
    """Give the globals that the functions of a cell look up when they are called."""
    try:
        scopes = symtable.symtable(source, "cell", "exec").get_children()
    except SyntaxError:
        return set()
    names = set()
    scopes = list(scopes)
    while scopes:
        scope = scopes.pop()
        names |= {symbol.get_name() for symbol in scope.get_symbols() if symbol.is_global()}
        scopes += scope.get_children()
    return names


def needed(sources: list[str]) -> set[str]:
    """Give the names that tests and answers take from the lesson."""
    names = set()
    for source in sources:
        try:
            names |= {name for name, _ in uses_at(parse(source), source, 0, 0)}
        except (SyntaxError, ValueError, RecursionError):
            continue
    return names
