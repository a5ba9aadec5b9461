"""A lesson of three exercises that runs in no time, for the tests of the classroom."""

import copy

from minidalle.course import session

NAME = "42_tiny"
SECRET = 48_611  # in the hidden tests alone


def cell(kind: str, source: str, grade_id: str = "", points: float = 0) -> dict:
    """Make a cell; one with points judges, one with a grade_id is answered."""
    made = {"cell_type": kind, "id": f"id-{abs(hash(source)) % 10**8}", "metadata": {}, "source": source}
    if kind == "code":
        made |= {"outputs": [{"output_type": "stream", "name": "stdout", "text": ["old\n"]}], "execution_count": 1}
    if grade_id:
        marks = {"grade_id": grade_id, "schema_version": 3, "task": False, "grade": bool(points)}
        marks |= (
            {"locked": True, "points": points, "solution": False} if points else {"locked": False, "solution": True}
        )
        made["metadata"]["nbgrader"] = marks
    return made


AREA = '''def area(w, h):
    """Give the area."""
    ### BEGIN SOLUTION
    return w * h
    ### END SOLUTION'''
AREA_TEST = f"""found = area(2, 3)
assert found == 6, f"2 by 3 is 6; you gave {{found}}: multiply"
### BEGIN HIDDEN TESTS
found = float(area({SECRET}, 2))
assert found == {2 * SECRET}, f"a larger one is wrong; you gave {{found}}"
### END HIDDEN TESTS"""
PAIR = """ONE, TWO = None, None
### BEGIN SOLUTION
ONE, TWO = 1, 2.5
### END SOLUTION"""
PAIR_TEST = """# one: 1 point
assert ONE is not None, "set ONE"
assert abs(float(ONE) - 1) < 1e-6, f"ONE is not {ONE}"
# two: 2 points
assert TWO is not None, "set TWO"
### BEGIN HIDDEN TESTS
# two: 2 points
assert abs(float(TWO) - 2.5) < 1e-6, f"TWO is not {TWO}"
### END HIDDEN TESTS"""
TWICE = '''def twice(model):
    """Make a model that applies a model two times."""
    ### BEGIN SOLUTION
    return lambda x: model(model(x))
    ### END SOLUTION'''
TWICE_TEST = """calls = []
model = twice(lambda x: calls.append(1) or 3 * x + 1)
found = torch.as_tensor(model(torch.ones(2))).float()
assert torch.allclose(found, torch.full((2,), 13.0)), f"3 (3 x + 1) + 1 is 13 at 1; you gave {found.tolist()}"
assert len(calls) == 2, f"two calls were expected, not {len(calls)}"
### BEGIN HIDDEN TESTS
assert float(twice(doubled)(torch.tensor(1.0))) == 4, "the lesson's own function, twice, makes 4 of 1"
### END HIDDEN TESTS"""
NOTEBOOK = {
    "cells": [
        cell("markdown", f"{session.badge(NAME)}\n# 42 Tiny: a lesson"),
        cell("code", "import math\n\nimport torch"),
        cell("code", "def doubled(x):\n    return 2 * x\n\n\nunused = [doubled(i) for i in range(3)]"),
        cell("markdown", "### Exercise 42.1: an area"),
        cell("code", AREA, "42-area"),
        cell("code", AREA_TEST, "42-area-test", 2),
        cell("code", "print(area(4, 5))"),
        cell("markdown", "### Exercise 42.2: two numbers"),
        cell("code", PAIR, "42-pair"),
        cell("code", PAIR_TEST, "42-pair-test", 3),
        cell("markdown", "### Exercise 42.3: twice"),
        cell("code", TWICE, "42-twice"),
        cell("code", TWICE_TEST, "42-twice-test", 4),
    ],
    "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}
RIGHT = {"42-area": AREA, "42-pair": PAIR, "42-twice": TWICE}


def notebook() -> dict:
    """Give the lesson with its solutions."""
    return copy.deepcopy(NOTEBOOK)


def filled(copied: dict, sources: dict[str, str]) -> dict:
    """Write answers into a student copy."""
    copied = copy.deepcopy(copied)
    for each in copied["cells"]:
        name = each["metadata"].get("nbgrader", {}).get("grade_id")
        if name in sources:
            each["source"] = sources[name]
    return copied
