"""Several processes take the steps of one: the same batches, the same noise, the same losses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import MICRO

from minidalle import parallel
from minidalle.clip import contrastive_loss
from minidalle.data.batches import Scenes
from minidalle.losses import Share, draw_integers, draw_mask, draw_normal
from minidalle.training.run import train
from minidalle.training.stages import STACK

WORKER = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from conftest import MICRO
from minidalle import parallel
from minidalle.clip import contrastive_loss
from minidalle.training import loop
from minidalle.training.run import train
from minidalle.training.stages import STACK

torch.set_num_threads(1)
loop.SAVE_SECONDS, loop.LOG_EVERY = 0.0, 3
folder, killed = Path(sys.argv[2]), int(sys.argv[3])
with parallel.joined("cpu") as device:
    torch.manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(8, 4), dim=-1).requires_grad_()
    tokens = torch.arange(8)[:, None]
    mine = z[parallel.rank() :: parallel.number()]
    rows = tokens[parallel.rank() :: parallel.number()]
    z_image, z_text = parallel.gather(mine), parallel.gather(mine.flip(1))
    loss = contrastive_loss(z_image, z_text, torch.tensor(3.0), parallel.gather(rows))
    loss.backward()
    torch.save({"loss": loss.item(), "gradient": z.grad}, folder / f"gather{parallel.rank()}.pt")
    steps = iter(range(1000))
    real = loop.SaveTimer.due

    def due(timer):
        if killed and parallel.rank() == 1 and next(steps) == killed:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(timer)

    loop.SaveTimer.due = due
    train(MICRO, "quick", folder, STACK, 0, device, resume=True)
    print("printed once")
"""


def launch(folder: Path, processes: int, killed: int = 0) -> subprocess.CompletedProcess:
    """Train all stages in some processes; the second is killed at a step."""
    folder.mkdir(exist_ok=True)
    (folder / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [str(folder / "worker.py"), str(Path(__file__).parent), str(folder), str(killed)]
    env = os.environ | {"MINIDALLE_DTYPE": "float32", "MINIDALLE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, text=True, capture_output=True, timeout=300)


def losses(folder: Path) -> dict[str, list[float]]:
    """Read the losses of each stage."""
    paths = {stage: folder / f"{stage}.metrics.jsonl" for stage in STACK}
    return {
        stage: [json.loads(line)["loss"] for line in path.read_text().splitlines()] for stage, path in paths.items()
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """Train in two processes."""
    folder = tmp_path_factory.mktemp("two")
    return folder, launch(folder, 2)


def test_two_processes_have_the_losses_of_one(two, tmp_path, monkeypatch):
    folder, done = two
    assert done.returncode == 0, done.stderr[-2000:]
    monkeypatch.setenv("MINIDALLE_DTYPE", "float32")
    monkeypatch.setattr("minidalle.training.loop.LOG_EVERY", 3)
    train(MICRO, "quick", tmp_path, STACK)
    one, other = losses(tmp_path), losses(folder)
    for stage in STACK:
        assert len(one[stage]) == 4 and other[stage] == pytest.approx(one[stage], rel=1e-4)


def test_one_process_writes_and_prints(two):
    folder, done = two
    assert done.stdout.count("printed once") == done.stdout.count("decoder begins") == 1
    assert not list(folder.glob("*.partial")) and not list(folder.glob("*.training.*"))


def test_gathered_rows_bring_back_the_gradient_of_the_whole_batch(two):
    folder, _ = two
    torch.manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(8, 4), dim=-1).requires_grad_()
    loss = contrastive_loss(z, z.flip(1), torch.tensor(3.0), torch.arange(8)[:, None])
    loss.backward()
    found = [torch.load(folder / f"gather{rank}.pt", weights_only=True) for rank in range(2)]
    assert all(part["loss"] == pytest.approx(loss.item(), rel=1e-5) for part in found)
    mean = (found[0]["gradient"] + found[1]["gradient"]) / 2  # what DistributedDataParallel makes of them
    assert torch.allclose(mean, z.grad, atol=1e-6)


def test_a_killed_process_ends_all_and_another_number_of_them_goes_on(two, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDALLE_DTYPE", "float32")
    monkeypatch.setattr("minidalle.training.loop.LOG_EVERY", 3)
    killed = launch(tmp_path, 2, killed=17)  # in the second stage
    assert killed.returncode != 0 and "printed once" not in killed.stdout
    train(MICRO, "quick", tmp_path, STACK, resume=True)
    with_two, mixed = losses(two[0]), losses(tmp_path)
    assert mixed["clip"] == with_two["clip"]
    assert mixed["prior"] == pytest.approx(with_two["prior"], rel=1e-3)


def test_shares_of_the_noise_are_the_rows_of_the_whole():
    batch = Scenes().source(16, seed=0).batch(0, 6)
    parts = [batch.part(rank, 3) for rank in range(3)]
    assert [part.captions for part in parts] == [batch.captions[rank::3] for rank in range(3)]
    for draw in (
        lambda batch, generator: draw_normal(batch.images, generator),
        lambda batch, generator: draw_mask(batch, 0.5, generator),
        lambda batch, generator: draw_integers(1000, (len(batch.images), 4), generator),
    ):
        whole = draw(batch, torch.Generator().manual_seed(1))
        for rank, part in enumerate(parts):
            share = Share(torch.Generator().manual_seed(1), rank, 3)
            assert torch.equal(draw(part, share), whole[rank::3])


def test_a_batch_that_cannot_be_shared_out_is_refused():
    with pytest.raises(ValueError, match="batch of 6 cannot be shared out among 4 processes"):
        Scenes().source(16, seed=0).batch(0, 6).part(0, 4)


def test_alone_nothing_is_different(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    rows, model = torch.randn(3, 2), torch.nn.Linear(2, 2)
    with parallel.joined("cpu") as device:
        assert (device.type, parallel.number(), parallel.rank()) == ("cpu", 1, 0)
        assert parallel.gather(rows) is rows and parallel.wrap(model) is model
        assert parallel.most(3, device) == 3 and parallel.mean(0.5, device) == 0.5
        parallel.barrier()
