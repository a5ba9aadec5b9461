"""What a visitor reads first: README, the documents, the commands that they name, and the course as a web site."""

import base64
import io
import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from minidalle import cli

ROOT = Path(__file__).parent.parent
NAMES = (
    "README.md",
    "CONTRIBUTING.md",
    "notebooks/README.md",
    "data/README.md",
    "docs/results.md",
    "docs/experiments.md",
)
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}
README, EXPERIMENTS = TEXTS["README.md"], TEXTS["docs/experiments.md"]
LINK = re.compile(r"\]\((?!\w+:)([^)\s]*)\)")
CODE = re.compile(r"```\n(.*?)```|`([^`\n]+)`", re.DOTALL)
FILE = re.compile(r"\]\((minidalle/[\w/]+\.py)\)")


def anchors(text: str) -> set[str]:
    """Give the fragments by which headings can be linked, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> list[list[str]]:
    """Give the command lines in a text, as lists of words without comments."""
    lines = "\n".join(block or inline for block, inline in CODE.findall(text)).splitlines()
    return [
        shlex.split(line, comments=True) for line in lines if re.match(r"(\.venv/bin/)?(make|minidalle) [a-z]", line)
    ]


def change_table() -> list[tuple[str, list[str]]]:
    """Give file and names of each row of README's table of what to open for a change."""
    rows = README.split("## To change something")[1].split("\n## ")[0].splitlines()
    return [(FILE.search(row)[1], re.findall(r"`(\w+)`", row.split("|")[3])) for row in rows if FILE.search(row)]


@pytest.mark.parametrize("name", NAMES)
def test_local_links_lead_somewhere(name: str) -> None:
    broken = []
    for link in LINK.findall(TEXTS[name]):
        file, _, fragment = link.partition("#")
        target = (ROOT / name).parent / file if file else ROOT / name
        if not target.exists() or (fragment and fragment not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("name", NAMES)
def test_no_figure_is_missing(name: str) -> None:
    assert re.findall(r"@@[^@]*@@", TEXTS[name]) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_command_exists(name: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    known = next(action.choices for action in cli.parser()._actions if action.dest == "command")
    unknown = [words for words in commands(TEXTS[name]) if words[1] not in (targets if words[0] == "make" else known)]
    assert unknown == []


def test_commands_are_found() -> None:
    assert commands("`make nothing` and\n```\nminidalle lost --out x  # 5 s\n```") == [
        ["make", "nothing"],
        ["minidalle", "lost", "--out", "x"],
    ]


def test_readme_is_short() -> None:
    assert [line for line in README.splitlines() if len(line) > 160] == []
    prose = re.sub(r"```.*?```|^\|[^\n]*$", "", README, flags=re.DOTALL | re.MULTILINE)
    assert len(prose.split()) <= 600


def test_readme_names_every_folder_of_the_package() -> None:
    folders = {path.parent.name for path in (ROOT / "minidalle").glob("*/__init__.py")}
    assert folders == set(re.findall(r"^\| \[minidalle/(\w+)/\]", README, re.MULTILINE))


def test_readme_has_a_file_for_every_change() -> None:
    rows = change_table()
    assert len(rows) >= 25
    lost = [(file, name) for file, names in rows for name in names if not defines(file, name)]
    assert lost == []


def defines(file: str, name: str) -> bool:
    """Tell whether a file of the package defines a function, class, field or constant, or is that file."""
    source = (ROOT / file).read_text(encoding="utf-8")
    return bool(re.search(rf"^\s*(def|class) {name}\b|^\s*{name}\b\s*[:=(]", source, re.MULTILINE))


def test_a_lost_name_is_found() -> None:
    assert defines("minidalle/prior.py", "sight")
    assert not defines("minidalle/prior.py", "rearrange")


def test_the_lines_of_python_draw_a_picture(tmp_path: Path) -> None:
    lines = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, env=environment, check=True, timeout=300)
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (32, 32)
        assert len(picture.convert("RGB").getcolors(32 * 32)) > 3


def test_experiments_are_short_dated_and_have_a_verdict() -> None:
    assert len(EXPERIMENTS.encode()) <= 20_000
    headings = re.findall(r"^## (\d{4}-\d\d-\d\d) · [^:\n]+: \w.*$", EXPERIMENTS, re.MULTILINE)
    others = re.findall(r"^## (?!\d{4}-)(.*)$", EXPERIMENTS, re.MULTILINE)
    assert others == ["What each default rests on", "Not done yet"]
    assert len(headings) == len(re.findall(r"^## \d", EXPERIMENTS, re.MULTILINE)) > 0
    assert headings == sorted(headings, reverse=True)


def test_experiments_say_what_at_most_25_defaults_rest_on() -> None:
    rows = re.findall(r"^\|.*\| `([\w.]+\.py)` \|.*$", EXPERIMENTS, re.MULTILINE)
    assert 0 < len(rows) <= 25
    files = {path.name for path in (ROOT / "minidalle").glob("**/*.py")}
    assert set(rows) <= files


class Site(HTMLParser):
    """What a reader of a page gets: text outside and inside of folded parts, alternative texts, what it loads."""

    def __init__(self, page: Path):
        super().__init__()
        self.depth, self.shown, self.folded, self.alts, self.loads, self.tags = 0, "", "", [], [], set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list) -> None:
        found = dict(attributes)
        self.tags.add(tag)
        self.depth += tag == "details"
        self.alts += [found.get("alt")] if tag == "img" else []
        self.loads += [found.get("src") or found.get("href")] if tag in ("img", "script", "link") else []

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag == "details"

    def handle_data(self, data: str) -> None:
        if self.depth:
            self.folded += data
        else:
            self.shown += data


def lesson() -> dict:
    """Make a small notebook with prose, a formula, a picture and an exercise."""
    png = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(png, "PNG")
    data = {"image/png": base64.b64encode(png.getvalue()).decode(), "text/plain": "plain"}
    alt = {"image/png": {"alt": 'A red square: "small", [no link], $5$'}}
    picture = {"output_type": "display_data", "data": data, "metadata": alt}
    stream = {"output_type": "stream", "name": "stdout", "text": ["10 %\r100 %\n", "\x1b[31mred\x1b[0m\n"]}
    badge = "[![Open in Colab](https://example.org/badge.svg)](https://example.org/lab)"

    def code(source: str, outputs: tuple = (), **nbgrader) -> dict:
        return {"cell_type": "code", "source": source, "outputs": list(outputs), "metadata": {"nbgrader": nbgrader}}

    hint = "<details><summary>Hint</summary>\n$y^2$\n</details>"
    prose = f"{badge}\n\n# Lesson\n\nA loss of $\\ln 8$. See [notes](../docs/x.md).\n\n{hint}"
    solution = "def f():\n    ### BEGIN SOLUTION\n    return 42\n    ### END SOLUTION"
    check = "assert f()\n### BEGIN HIDDEN TESTS\nassert f() == 42\n### END HIDDEN TESTS"
    cells = [
        {"cell_type": "markdown", "source": prose, "metadata": {}},
        code("try:\n    import minidalle\nexcept ModuleNotFoundError:\n    %pip install minidalle"),
        code("draw()", (picture, stream)),
        code(solution, solution=True, grade=False),
        code(check, grade=True),
    ]
    return {"cells": cells}


def test_a_lesson_becomes_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sphinx", reason="needs the extra book")
    monkeypatch.syspath_prepend(ROOT / "tools")
    import build_book

    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    build_book.Page("index", json.loads(json.dumps(lesson())), "https://example.org/repository").write(source)
    build_book.build_site(source, out)
    page = Site(out / "index.html")
    assert page.alts == ['A red square: "small", [no link], $5$']
    assert "return 42" in page.folded
    assert "return 42" not in page.shown
    assert "...  # your code" in page.shown
    assert "assert f() == 42" in page.folded
    assert "BEGIN" not in page.shown + page.folded
    assert "pip install" not in page.shown + page.folded
    assert "100 %\nred" in page.shown
    assert "10 %\r" not in page.shown
    assert "math" in page.tags
    assert "$" not in page.shown + page.folded
    assert not [load for load in page.loads if re.match(r"(\w+:)?//", load or "")]
    assert 'href="https://example.org/lab"' in (out / "index.html").read_text(encoding="utf-8")
    assert "https://example.org/repository/blob/main/docs/x.md" in (out / "index.html").read_text(encoding="utf-8")
    assert (out / "searchindex.js").is_file()
