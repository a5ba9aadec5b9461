"""The form of the committed notebooks; that they run is nbval's to show (make test)."""

import copy
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from minidalle.course import session

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_BYTES = 800_000  # each picture is there twice: as a PNG, and as HTML that carries its description
MAX_LINES = 30
MAX_RUN = 2  # code cells in a row without prose
FIRST_CELL = """try:
    import minidalle
except ModuleNotFoundError:
    %pip install -q "minidalle @ git+https://github.com/minidalle/minidalle\""""
PATH = re.compile(r"(?<![\w.~])/(home|root|tmp|work|content|Users)\b|\b[A-Z]:\\")
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"


def text(value: str | list[str]) -> str:
    """Join what the format allows to be split into lines."""
    return value if isinstance(value, str) else "".join(value)


def source(cell: dict) -> str:
    return text(cell["source"])


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def faults(notebook: dict, name: str) -> list[str]:
    """Say in what a notebook departs from the form that all of them have."""
    cells, code = notebook["cells"], code_cells(notebook)
    found = [f"cell {i}: {fault}" for i, cell in enumerate(cells) for fault in cell_faults(cell)]
    if "widgets" in notebook["metadata"]:
        found.append("widget state")
    if notebook["metadata"].get("kernelspec", {}).get("name") != "python3":
        found.append("another kernel than python3")
    if len({cell["id"] for cell in cells}) < len(cells):
        found.append("two cells with one id")
    counts = [cell["execution_count"] for cell in code]
    if None in counts or any(b <= a for a, b in itertools.pairwise(counts)):
        found.append("not run from top to bottom")
    if session.badge(name) not in source(cells[0]):
        found.append(f"the first cell lacks the badge {session.badge(name)}")
    if source(code[0]) != FIRST_CELL:
        found.append("the first code cell is not the one of all notebooks")
    kinds = "".join("c" if cell["cell_type"] == "code" else " " for cell in cells)
    if max(map(len, kinds.split())) > MAX_RUN:
        found.append(f"more than {MAX_RUN} code cells without prose between them")
    return found + grading_faults(cells, name)


def cell_faults(cell: dict) -> list[str]:
    """Say what is wrong with one cell and its outputs."""
    found, words = [], [source(cell)]
    if cell["cell_type"] != "code":
        if "![](" in source(cell) or re.search(r"<img(?![^>]*alt=)", source(cell)):
            found.append("a picture without alt text")
        outputs = []
    else:
        outputs = cell["outputs"]
        if len(source(cell).splitlines()) > MAX_LINES:
            found.append(f"more than {MAX_LINES} lines")
    for output in outputs:
        data = output.get("data", {})
        if output["output_type"] == "error":
            found.append(f"an error: {output['ename']}")
        if output.get("name") == "stderr":
            found.append("something on stderr")
        if any(mime.startswith("application/vnd.jupyter.widget") for mime in data):
            found.append("a widget that is dead without its kernel")
        if "image/png" in data and not output["metadata"].get("image/png", {}).get("alt"):
            found.append("a picture without alt text")
        words += [text(output.get("text", "")), *(text(data[mime]) for mime in data if mime.startswith("text/"))]
    if match := PATH.search("\n".join(words)):
        found.append(f"a path of a machine: {match[0]}")
    return found


def grading_faults(cells: list[dict], name: str) -> list[str]:
    """Say what nbgrader would trip over."""
    found = []
    for cell in cells:
        grader = cell["metadata"].get("nbgrader")
        marked = (BEGIN in source(cell)) + (END in source(cell))
        if grader is None:
            if marked or "HIDDEN TESTS" in source(cell):
                found.append("a solution or hidden tests in a cell that nbgrader does not know")
            continue
        grade_id = grader["grade_id"]
        if not grade_id.startswith(f"{name[:2]}-"):
            found.append(f"{grade_id}: does not begin with {name[:2]}-")
        if grader["schema_version"] != 3:
            found.append(f"{grade_id}: another schema than 3")
        if grader["solution"] != (marked == 2):
            found.append(f"{grade_id}: a solution needs both markers, and only a solution has them")
        if grader["grade"] and not (grader.get("points", 0) > 0 and grader["locked"]):
            found.append(f"{grade_id}: a graded cell needs points and is locked")
        if source(cell).count("### BEGIN HIDDEN TESTS") != source(cell).count("### END HIDDEN TESTS"):
            found.append(f"{grade_id}: hidden tests need both markers")
    return found


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_the_form_of_all(path):
    assert path.stat().st_size <= MAX_BYTES
    assert faults(read(path), path.stem) == []


def test_grade_ids_are_unique_over_the_course():
    cells = [cell for path in NOTEBOOKS for cell in read(path)["cells"]]
    ids = [cell["metadata"]["nbgrader"]["grade_id"] for cell in cells if "nbgrader" in cell["metadata"]]
    assert len(ids) == len(set(ids))


def test_the_readme_names_every_notebook_and_no_other():
    named = set(re.findall(r"\b\d\d_\w+\.ipynb", (FOLDER / "README.md").read_text(encoding="utf-8")))
    assert {path.name for path in NOTEBOOKS} <= named


def cell(kind: str, words: str, **more) -> dict:
    return {"id": words[:9], "cell_type": kind, "metadata": {}, "source": words} | more


def good() -> dict:
    """Make a notebook without a fault."""
    solved = {"grade": False, "grade_id": "02-area", "locked": False, "schema_version": 3, "solution": True}
    graded = {"grade": True, "grade_id": "02-area-test", "locked": True, "schema_version": 3, "solution": False}
    picture = {"output_type": "display_data", "data": {"image/png": "", "text/plain": "a circle"}}
    picture["metadata"] = {"image/png": {"alt": "a circle"}}
    shown = {"output_type": "stream", "name": "stdout", "text": ["see /etc/hosts\n"]}
    done = {"outputs": [], "execution_count": 1}
    cells = [
        cell("markdown", session.badge("02_clip") + "\n# 02 CLIP"),
        cell("code", FIRST_CELL, **done),
        cell("code", "picture", **done | {"outputs": [picture, shown], "execution_count": 2}),
        cell("markdown", "Prose."),
        cell("code", f"{BEGIN}\n{END}", **done | {"execution_count": 3}) | {"metadata": {"nbgrader": solved}},
        cell("code", "assert True", **done | {"execution_count": 4})
        | {"metadata": {"nbgrader": graded | {"points": 1}}},
    ]
    return {"cells": cells, "metadata": {"kernelspec": {"name": "python3"}}, "nbformat": 4, "nbformat_minor": 5}


def test_a_notebook_of_that_form_is_faultless():
    assert faults(good(), "02_clip") == []


def output(notebook: dict, **changes) -> None:
    notebook["cells"][2]["outputs"][0] |= changes


def grader(notebook: dict, index: int, **changes) -> None:
    notebook["cells"][index]["metadata"]["nbgrader"] |= changes


SPOILED: dict[str, Callable[[dict], object]] = {
    "widget state": lambda n: n["metadata"].update(widgets={}),
    "another kernel": lambda n: n["metadata"].update(kernelspec={"name": "mine"}),
    "one id": lambda n: n["cells"][3].update(id="picture"),
    "top to bottom": lambda n: n["cells"][4].update(execution_count=1),
    "bottom": lambda n: n["cells"][4].update(execution_count=None),
    "lacks the badge": lambda n: n["cells"][0].update(source="# 02 CLIP"),
    "not the one of all": lambda n: n["cells"][1].update(source="import minidalle"),
    "without prose": lambda n: n["cells"].pop(3),
    "more than 30 lines": lambda n: n["cells"][2].update(source="1\n" * 31),
    "an error: ValueError": lambda n: output(n, output_type="error", ename="ValueError"),
    "stderr": lambda n: output(n, name="stderr"),
    "dead without its kernel": lambda n: output(n, data={"application/vnd.jupyter.widget-view+json": {}}),
    "without alt text": lambda n: output(n, metadata={}),
    "alt text": lambda n: n["cells"][3].update(source="![](a.png)"),
    "path of a machine": lambda n: output(n, data={"text/plain": ["saved in /" + "home/me/x"]}),
    "does not know": lambda n: n["cells"][4].update(metadata={}),
    "begin with 02-": lambda n: grader(n, 4, grade_id="area"),
    "both markers": lambda n: n["cells"][4].update(source=BEGIN),
    "only a solution": lambda n: grader(n, 4, solution=False),
    "needs points": lambda n: grader(n, 5, points=0),
    "is locked": lambda n: grader(n, 5, locked=False),
    "hidden tests need": lambda n: n["cells"][5].update(source="### BEGIN HIDDEN TESTS"),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_departure_is_found(fault):
    notebook = copy.deepcopy(good())
    SPOILED[fault](notebook)
    assert any(fault in found for found in faults(notebook, "02_clip")), faults(notebook, "02_clip")
