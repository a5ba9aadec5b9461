"""The script that is run on a GPU, at its smallest, on the CPU: every part ends well and leaves its figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_part_of_the_gpu_check_runs_and_leaves_its_figures(tmp_path):
    environment = os.environ | {"OUT": str(tmp_path), "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", "tools/gpu_check.sh", "--smoke"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert {part["state"] for part in results["parts"].values()} == {"done"}, done.stdout
    assert done.returncode == 0
    assert results["parts"]["card quick 0"]["figures"]["n"] == 8
    compiled = results["parts"]["compile"]["figures"]
    for stage in ("clip", "prior", "decoder"):
        assert compiled[f"{stage} plain"]["mean loss"] == compiled[f"{stage} compiled"]["mean loss"] > 0
    assert len(list(tmp_path.iterdir())) <= 8
