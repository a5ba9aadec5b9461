"""The promises of the repository as a whole: dependencies, the order of imports, the README's tree, clean files."""

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minidalle"
MODULES = sorted(PACKAGE.glob("**/*.py"))

# A file imports only files named before it. __init__ comes late: a file of the package imports none of its shortcuts.
ORDER = (
    "scenes captions oracle tokenizer data device layers diffusion samplers clip prior ar_prior unet decoder upsampler "
    "presets checkpoint pipeline edits optimizers stages training runs reference report viz widgets course bench cli "
    "__init__ __main__"
).split()
DIFFUSION = {"diffusion", "samplers"}
NETWORKS = {"clip", "prior", "ar_prior", "unet", "decoder", "upsampler"}
MAX_LINES = 300

CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "playwright": "playwright-python"}
BUILD_PATH = re.compile(r"(?<![\w.~])/(home|root|tmp|work|Users)\b")
PACKAGE_INDEX = re.compile(r"py(pi|thonhosted)\.org|\bwhl/|index[-_]url")


def read(path: str | Path) -> str:
    """Read a text file of the repository."""
    return (ROOT / path).read_text(encoding="utf-8")


def project() -> dict:
    """Read the project table of pyproject.toml."""
    return tomllib.loads(read("pyproject.toml"))["project"]


def requirements() -> dict[str, Requirement]:
    """Read what pyproject.toml asks for: the package and all its extras, by name."""
    lines = sum(project()["optional-dependencies"].values(), project()["dependencies"])
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


def pins() -> dict[str, Version]:
    """Read the versions of constraints.txt, by name."""
    lines = read("constraints.txt").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {name: Version(version) for name, version in pairs}


def imported(source: str) -> set[str]:
    """Name every module that a file imports, at any depth of the code; a relative import belongs to minidalle.

    `from minidalle import x` names the module minidalle.x where there is one, else minidalle.__init__.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, ["minidalle" if node.level else "", node.module]))
            if module == "minidalle":
                names |= {f"minidalle.{alias.name if alias.name in ORDER else '__init__'}" for alias in node.names}
            else:
                names.add(module)
    return names


def siblings(source: str) -> set[str]:
    """Name the files of the package that a file imports, without their suffix."""
    inside = (name.split(".") for name in imported(source) if name.split(".")[0] == "minidalle")
    return {parts[1] if len(parts) > 1 else "__init__" for parts in inside}


def wrong_arrows(name: str, source: str) -> set[str]:
    """Name the imports of a file that go upward, or that join networks and diffusion."""
    found = siblings(source)
    forbidden = set(ORDER[ORDER.index(name) :])
    if name in NETWORKS:
        forbidden |= DIFFUSION | NETWORKS - {"unet"}
    if name in DIFFUSION:
        forbidden |= NETWORKS
    return found & forbidden | found - set(ORDER)


def unsafe(source: str) -> set[str]:
    """Name what would run code from a file or a string: pickle in any form, eval and exec."""
    found = {
        name for name in imported(source) if name.split(".")[0] in ("pickle", "dill", "joblib", "shelve", "marshal")
    }
    for node in ast.walk(ast.parse(source)):
        text = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
        if text in ("torch.load", "torch.save", "eval", "exec"):
            found.add(text)
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found.add("allow_pickle")
    return found


@cache
def repository_files() -> list[Path]:
    """List the files of the repository: what git tracks, or without git everything that .gitignore does not name."""
    try:
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        tracked = ""
    if tracked:
        return [path for path in map(Path, tracked.split("\0")[:-1]) if (ROOT / path).is_file()]
    ignored = [".git", *(line.strip("/") for line in read(".gitignore").splitlines())]
    files = (path.relative_to(ROOT) for path in ROOT.glob("**/*") if path.is_file())
    return [path for path in files if not any(fnmatch(part, name) for part in path.parts for name in ignored)]


def text_files() -> Iterator[tuple[Path, str]]:
    """Yield the files of the repository that are text, with their text."""
    for path in repository_files():
        try:
            yield path, read(path)
        except UnicodeDecodeError:
            continue


def readme_tree(readme: str) -> set[str]:
    """Read the paths of the annotated tree: the first fenced block that has a line `minidalle/`.

    A line is one or more names and, after two spaces or a #, what they are for. Files of a folder stand indented below
    it; lines that are indented further continue the line above.
    """
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    tree = next((block for block in blocks if re.search(r"^minidalle/(\s|$)", block, re.MULTILINE)), "")
    paths, folder, depth = set(), "", 0
    for line in filter(str.strip, tree.splitlines()):
        indent = len(line) - len(line.lstrip())
        names = re.split(r",? ", re.split(r"\s{2,}|\s#", line.strip())[0])
        if not indent:
            folder, depth = names[0], 0
            paths |= {name.rstrip("/") for name in names}
        elif indent == (depth or indent):
            depth = indent
            paths |= {folder + name.rstrip("/") for name in names}
    return paths


def test_environment_yml_asks_for_what_pyproject_asks_for() -> None:
    lines = re.findall(r"^  - ([\w-]+)(.*)$", read("environment.yml"), re.MULTILINE)
    others = ("python", "pip", "conda-forge", "nodefaults")
    conda = {name: SpecifierSet(bound) for name, bound in lines if name not in others}
    assert conda == {CONDA_NAMES.get(name, name): asked.specifier for name, asked in requirements().items()}


def test_environment_yml_asks_for_the_same_python() -> None:
    python = re.search(r"^  - python(.*)$", read("environment.yml"), re.MULTILINE)
    assert python[1] == project()["requires-python"]


def test_dependencies_have_lower_bounds_only() -> None:
    """An upper bound or a pin would make pip replace what Colab brings; ipykernel is no dependency of the package."""
    bounded = [asked for asked in requirements().values() if not re.fullmatch(r">=[\d.]+", str(asked.specifier))]
    assert [asked.name for asked in bounded] == ["ipykernel"]
    assert not any(line.startswith("ipykernel") for line in project()["dependencies"])


def test_constraints_pin_every_dependency_within_its_bound() -> None:
    pinned = pins()
    assert requirements().keys() - pinned.keys() == set()
    assert [name for name, asked in requirements().items() if pinned[name] not in asked.specifier] == []


def test_every_file_of_the_package_has_its_place_in_the_order() -> None:
    assert {path.relative_to(PACKAGE).as_posix() for path in MODULES} <= {f"{name}.py" for name in ORDER}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_go_down(path: Path) -> None:
    assert wrong_arrows(path.stem, read(path)) == set()


@pytest.mark.parametrize(
    ("name", "source", "arrow"),
    [
        ("scenes", "from minidalle.oracle import read", "oracle"),
        ("scenes", "from .oracle import read", "oracle"),
        ("scenes", "def late():\n    import minidalle.cli", "cli"),
        ("unet", "from minidalle import layers, diffusion", "diffusion"),
        ("samplers", "from minidalle.unet import UNet", "unet"),
        ("decoder", "from minidalle.clip import CLIP", "clip"),
        ("pipeline", "from minidalle import MiniDalle", "__init__"),
        ("cli", "import minidalle", "__init__"),
        ("cli", "from minidalle.attic import old", "attic"),
    ],
)
def test_an_upward_import_is_found(name: str, source: str, arrow: str) -> None:
    assert wrong_arrows(name, source) == {arrow}


@pytest.mark.parametrize("library", ["matplotlib", "ipywidgets"])
def test_only_viz_and_widgets_draw(library: str) -> None:
    users = {path.stem for path in MODULES for name in imported(read(path)) if name.split(".")[0] == library}
    assert users <= {"viz", "widgets"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_file_of_the_package_stays_short(path: Path) -> None:
    assert len(read(path).splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_the_package_never_runs_code_from_a_file(path: Path) -> None:
    assert unsafe(read(path)) == set()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import load",
        "import torch\ntorch.load(f)",
        "eval('1')",
        "numpy.load(f, allow_pickle=a)",
    ],
)
def test_unsafe_code_is_found(source: str) -> None:
    assert unsafe(source) != set()
    assert unsafe("model.eval()") == set()


def test_readme_shows_the_tree_on_disk() -> None:
    """Hidden files may be left out of the README's tree; everything else in the top folder and the package is there."""
    shown = readme_tree(read("README.md"))
    top = {path.parts[0] for path in repository_files()}
    package = {f"minidalle/{path.name}" for path in MODULES}
    assert {name for name in shown if not (ROOT / name).exists()} == set()
    named = shown | {name.split("/")[0] for name in shown}
    assert {name for name in top | package if not name.startswith(".")} - named == set()


def test_readme_tree_reads_names_folders_and_continuations() -> None:
    readme = """```
make demo
```
```text
minidalle/       the package
  viz.py, cli.py   pictures, and
                   the command line
data/checkpoints/  weights
Makefile LICENSE
```"""
    assert readme_tree(readme) == {
        "minidalle", "minidalle/viz.py", "minidalle/cli.py", "data/checkpoints", "Makefile", "LICENSE",
    }  # fmt: skip


@pytest.mark.parametrize("pattern", [BUILD_PATH, PACKAGE_INDEX], ids=["build path", "package index"])
def test_no_file_names_the_machine_it_was_made_on(pattern: re.Pattern[str]) -> None:
    found = [f"{path}: {match[0]}" for path, text in text_files() for match in pattern.finditer(text)]
    assert found == []


@pytest.mark.parametrize("text", ["saved in /" + "tmp/x", '"/' + 'root/a"', "https://" + "pypi" + ".org/simple"])
def test_a_trace_of_a_machine_is_found(text: str) -> None:
    assert BUILD_PATH.search(text) or PACKAGE_INDEX.search(text)
    assert not BUILD_PATH.search("the net/work/shop and example.org/home/page")
