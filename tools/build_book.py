"""Build the course as a web site that is read without a network.

    python tools/build_book.py [--out build/book]

Takes the notebooks as they are committed and runs none of them. Needs the extra book. Formulas become MathML, which
browsers draw by themselves; exercises keep their gap, with the solution folded away below it.
"""

import argparse
import base64
import html
import json
import re
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert
from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
FIRST_CELL = "try:\n    import minidalle\nexcept ModuleNotFoundError:"  # installs the package in Colab
BADGE = re.compile(r"\[!\[Open in Colab\]\([^)]*\)\]\(([^)]*)\)")
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")  # a relative one
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?### END SOLUTION", re.MULTILINE | re.DOTALL)
MARKER = re.compile(r"^ *### (?:BEGIN|END) (?:SOLUTION|HIDDEN TESTS)\n?", re.MULTILINE)
FUNCTION = re.compile(r"(<mi>(?:ln|log|exp|sin|cos|tan)</mi>)(?=<m[inr])")  # browsers set no space after it
CONTROLS = re.compile(r"\x1b\[[0-9;]*m|[^\n]*\r(?!\n)")  # colours, and lines that were written over
STYLE = """
.content { width: 60em; }
img { border-radius: 4px; background: white; }
div.output pre { background: none; border-left: 3px solid var(--color-brand-primary); padding-left: 1em; }
details { margin: 1em 0; padding: 0.3em 1em; border: 1px solid var(--color-background-border); border-radius: 6px; }
summary { cursor: pointer; font-weight: bold; }
math { font-size: 1.08em; }
div.math { overflow-x: auto; text-align: center; margin: 1em 0; }
table.docutils { font-size: 0.9em; }
"""


def text_of(value: str | list[str]) -> str:
    """Join what the notebook format allows to be split into lines."""
    return value if isinstance(value, str) else "".join(value)


def fenced(text: str, language: str, kind: str = "") -> str:
    """Put text into a block of code whose fence is longer than any inside it."""
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", text))]))
    options = f":class: {kind}\n" if kind else ""
    return f"{fence}{{code-block}} {language}\n{options}\n{text.rstrip()}\n{fence}\n"


def folded(summary: str, body: str) -> str:
    """Fold a part of a page away, under a line to press."""
    return f"<details><summary>{summary}</summary>\n\n{body}\n</details>\n"


def prose(text: str, folder: str, repository: str) -> str:
    """Prepare Markdown of a folder: links to lessons go to their pages, other relative ones to the repository."""

    def target(found: re.Match) -> str:
        path = Path(folder, found[1])
        if path.suffix == ".ipynb":
            return f"{path.stem}.md"
        parts: list[str] = []
        for part in path.parts:
            parts = parts[:-1] if part == ".." else [*parts, part]
        return f"{repository}/blob/main/{'/'.join(parts)}"

    text = BADGE.sub(r"[Open this lesson in Google Colab](\1)", text)
    return LINK.sub(target, re.sub(r"</summary>\n(?!\n)", "</summary>\n\n", text))  # else Markdown inside stays raw


class Page:
    """A notebook on its way to a page.

    Args:
        name: of the lesson, which its pictures are named after.
        notebook: as JSON gives it.
        repository: address that files outside the course are linked to.
    """

    def __init__(self, name: str, notebook: dict, repository: str):
        self.name, self.repository = name, repository
        self.pictures: dict[str, bytes] = {}  # PNG files by name
        self.markdown = "\n\n".join(filter(None, map(self._cell, notebook["cells"]))) + "\n"

    def write(self, folder: Path) -> None:
        """Write the page and its pictures."""
        (folder / f"{self.name}.md").write_text(self.markdown, encoding="utf-8")
        for name, png in self.pictures.items():
            (folder / name).write_bytes(png)

    def _cell(self, cell: dict) -> str:
        source = text_of(cell["source"])
        if cell["cell_type"] != "code":
            return prose(source, "notebooks", self.repository)
        if source.startswith(FIRST_CELL):
            return ""
        shown = "\n".join(map(self._output, cell.get("outputs", [])))
        code = fenced(MARKER.sub("", source), "python")
        if SOLUTION.search(source):
            gap = fenced(SOLUTION.sub(r"\1...  # your code", source), "python")
            return f"{gap}\n{folded('One solution', code)}\n{shown}"
        if cell["metadata"].get("nbgrader", {}).get("grade"):
            return folded("The check", f"{code}\n{shown}")
        return f"{code}\n{shown}"

    def _output(self, output: dict) -> str:
        data = output.get("data", {})
        if "image/png" in data:
            alt = output["metadata"].get("image/png", {}).get("alt") or text_of(data.get("text/plain", ""))
            name = f"{self.name}-{len(self.pictures) + 1:02d}.png"
            self.pictures[name] = base64.b64decode(text_of(data["image/png"]))
            return f"```{{image}} {name}\n:alt: {json.dumps(' '.join(alt.split()), ensure_ascii=False)}\n```\n"
        text = "\n".join(output["traceback"]) if "traceback" in output else output.get("text") or data.get("text/plain")
        text = CONTROLS.sub("", text_of(text or "")).strip("\n")
        return fenced(text, "text", "output") if text.strip() else ""


def index(lessons: list[str], repository: str) -> str:
    """Write the first page: how the course works, and its table of contents."""
    introduction = prose((ROOT / "notebooks" / "README.md").read_text(encoding="utf-8"), "notebooks", repository)
    contents = "\n".join(lessons)
    return f"{introduction}\n```{{toctree}}\n:hidden:\n:maxdepth: 2\n\n{contents}\n```\n"


def mathml(source: str, display: str) -> str:
    """Turn a formula into MathML, which keeps its LaTeX as the text that is read where there is no MathML."""
    formula = FUNCTION.sub(r'\1<mspace width="0.17em"/>', convert(source, display=display))
    return formula.replace("<math ", f'<math alttext="{html.escape(source)}" ', 1)


def setup(app: Sphinx) -> None:
    """Have Sphinx write formulas as MathML, so that no page loads a program or a font for them."""

    def inline(writer, node) -> None:
        writer.body.append(mathml(node.astext(), "inline"))
        raise SkipNode

    def block(writer, node) -> None:
        writer.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>')
        raise SkipNode

    app.add_html_math_renderer("mathml", (inline, None), (block, None))


def build_site(source: Path, out: Path) -> None:
    """Turn a folder of Markdown pages, index.md among them, into a web site.

    Raises: SystemExit: when a page has a fault; Sphinx prints which.
    """
    (source / "_static").mkdir(exist_ok=True)
    (source / "_static" / "book.css").write_text(STYLE, encoding="utf-8")
    settings = {
        "project": "minidalle",
        "html_title": "minidalle: build DALL·E 2",
        "extensions": ["myst_parser", Path(__file__).stem],  # this file, for setup
        "html_theme": "furo",
        "html_static_path": ["_static"],
        "html_css_files": ["book.css"],
        "html_math_renderer": "mathml",
        "html_copy_source": False,
        "html_show_sphinx": False,
        "html_show_copyright": False,
        "myst_enable_extensions": ["dollarmath"],
        "myst_heading_anchors": 4,
        "suppress_warnings": ["myst.header"],
    }
    with tempfile.TemporaryDirectory() as trees:
        app = Sphinx(source, None, out, trees, "html", settings, status=None, warningiserror=True)
        app.build()
    if app.statuscode:
        raise SystemExit("The book has faults; they are named above.")


def main() -> None:
    """Build the book of all lessons."""
    options = argparse.ArgumentParser(description="Build the course as a web site that is read without a network.")
    options.add_argument("--out", type=Path, default=ROOT / "build" / "book", help="folder (default %(default)s)")
    out = options.parse_args().out
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    repository = project["urls"]["Repository"]
    notebooks = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        for path in notebooks:
            Page(path.stem, json.loads(path.read_text(encoding="utf-8")), repository).write(source)
        (source / "index.md").write_text(index([path.stem for path in notebooks], repository), encoding="utf-8")
        build_site(source, out)
    print(f"Wrote {out / 'index.html'}.")


if __name__ == "__main__":
    sys.exit(main())
