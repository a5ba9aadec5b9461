"""Write the reference curves of the notebooks that train a model of their own. A program, not a test.

    python tools/lesson_curves.py 04 05 06 [--seeds 1 2 3]

Runs each notebook up to its training, once a seed, and keeps the losses in data/reference/NN_name.json.
"""

import argparse
import json
import os
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from minidalle.evaluation import curves

ROOT = Path(__file__).parent.parent
LOADS = re.compile(r'curves\.load\("(\w+)", course\.budget\(\), "(\w+)"\)')


def stage_of(notebook: nbformat.NotebookNode) -> tuple[int, str]:
    """Find the cell that trains, and what the notebook calls that which it trains."""
    for i, cell in enumerate(notebook.cells):
        if found := cell.cell_type == "code" and LOADS.search(cell.source):
            return i, found[2]
    raise SystemExit("No cell of the notebook loads reference curves.")


def train(path: Path, seed: int) -> tuple[str, list[tuple[int, float]]]:
    """Train once: the name of what was trained, and its steps and losses."""
    notebook = nbformat.read(path, as_version=4)
    last, stage = stage_of(notebook)
    notebook.cells = [
        *notebook.cells[: last + 1],
        nbformat.v4.new_code_cell("import json\nprint(json.dumps(live.curve))"),
    ]
    os.environ |= {"MINIDALLE_SEED": str(seed), "MINIDALLE_BUDGET": "quick"}
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(path.parent)}}).execute()
    return stage, json.loads(notebook.cells[-1].outputs[0]["text"])


def main() -> None:
    """Run the notebooks that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="+", metavar="NN", help="notebooks, by number")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    args = parser.parse_args()
    for number in args.numbers:
        (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
        thinned = {}
        for seed in args.seeds:
            stage, losses = train(path, seed)
            thinned[str(seed)] = curves.thin(losses)
            print(f"{path.stem}, seed {seed}: {curves.final_loss(thinned[str(seed)]):.4g} at the end")
        made = {"preset": path.stem, "recipe": "quick", "stages": {stage: thinned}}
        (ROOT / "data" / "reference").mkdir(exist_ok=True)
        (ROOT / "data" / "reference" / f"{path.stem}.json").write_text(curves.to_json(made), encoding="utf-8")


if __name__ == "__main__":
    main()
