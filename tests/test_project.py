"""The promises of the repository as a whole: dependencies, the order of imports, the README's tree, clean files."""

import ast
import os
import re
import shutil
import subprocess
import sys
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

MAX_LINES = 400
MAX_FUNCTION = 60
MAX_METHOD = 2_100  # lines of the files at the top level, which are the paper's method
NOT_METHOD = ("__main__.py", "cli.py", "checkpoint.py", "device.py", "checks.py", "parallel.py")
GRADERS = tuple(f"course/classroom/{name}.py" for name in ("kernel", "marker", "student"))  # run cells, in a sandbox
BEYOND = (
    "ar_prior.py",
    "degrade.py",
    "pca.py",
    "edits.py",
    "inpaint.py",
    "search.py",
)  # the paper's other prior, and edits: read later

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
    """Name every module that a file imports, at any depth of the code."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


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


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def functions(source: str) -> dict[str, int]:
    """Count the lines of every function of a file, its docstring included."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds))
    return {f"{node.name}, line {node.lineno}": node.end_lineno - node.lineno + 1 for node in nodes}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_file_and_each_of_its_functions_stay_short(path: Path) -> None:
    assert len(read(path).splitlines()) <= MAX_LINES
    assert {name: lines for name, lines in functions(read(path)).items() if lines > MAX_FUNCTION} == {}


def test_a_long_function_is_found() -> None:
    long = "class A:\n    async def f(self):\n" + "        pass\n" * MAX_FUNCTION
    assert functions(long) == {"f, line 2": MAX_FUNCTION + 1}


def test_the_method_can_be_read_in_an_evening() -> None:
    lines = {
        path.name: len(read(path).splitlines()) for path in PACKAGE.glob("*.py") if path.name not in NOT_METHOD + BEYOND
    }
    assert {"clip.py", "diffusion.py", "pipeline.py", "losses.py"} < lines.keys()
    assert sum(lines.values()) <= MAX_METHOD, lines


LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    """Hold the package in a folder against the contracts in the pyproject.toml beside it."""
    wide = os.environ | {"COLUMNS": "200"}  # or a long line of the report is wrapped
    return subprocess.run([sys.executable, "-c", LINT], cwd=folder, env=wide, capture_output=True, text=True)


def test_no_file_imports_what_stands_above_it() -> None:
    ended = lint_imports(ROOT)
    assert ended.returncode == 0, ended.stdout
    assert "0 broken" in ended.stdout


FORBIDDEN = {  # what each file must not import, and a word of the contract that says so
    "unet.py": ("from minidalle.clip import CLIP", "below"),
    "world/scenes.py": ("from minidalle.data.batches import World", "below"),
    "training/loop.py": ("from minidalle.evaluation.metrics import Rate", "below"),
    "samplers.py": ("from minidalle.decoder import Decoder", "below"),
    "decoder.py": ("from minidalle.diffusion import guided", "Networks"),
    "prior.py": ("from minidalle.tokenizer import Tokenizer", "Networks"),
    "pipeline.py": ("from minidalle.world.scenes import SHAPES", "no world"),
    "evaluation/metrics.py": ("import matplotlib.pyplot", "matplotlib"),
    "course/session.py": ("import ipywidgets", "ipywidgets"),
}


def test_a_forbidden_import_is_found(tmp_path: Path) -> None:
    for file, (line, contract) in FORBIDDEN.items():
        folder = tmp_path / file.replace("/", "-")
        shutil.copytree(PACKAGE, folder / "minidalle", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        changed = folder / "minidalle" / file
        changed.write_text(read(PACKAGE / file) + f"\n{line}\n", encoding="utf-8")
        ended = lint_imports(folder)
        broken = [name for name in ended.stdout.splitlines() if " BROKEN" in name]
        assert ended.returncode == 1 and any(contract in name for name in broken), (file, ended.stdout)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_package_never_runs_code_from_a_file(path: Path) -> None:
    assert unsafe(read(path)) <= ({"exec"} if name_of(path) in GRADERS else set())


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


@pytest.mark.parametrize("pattern", [BUILD_PATH, PACKAGE_INDEX], ids=["build path", "package index"])
def test_no_file_names_the_machine_it_was_made_on(pattern: re.Pattern[str]) -> None:
    found = [f"{path}: {match[0]}" for path, text in text_files() for match in pattern.finditer(text)]
    assert found == []


@pytest.mark.parametrize("text", ["saved in /" + "tmp/x", '"/' + 'root/a"', "https://" + "pypi" + ".org/simple"])
def test_a_trace_of_a_machine_is_found(text: str) -> None:
    assert BUILD_PATH.search(text) or PACKAGE_INDEX.search(text)
    assert not BUILD_PATH.search("the net/work/shop and example.org/home/page")
