"""The parts of tools/gpu_check.sh: each a process with a time limit of its own, so that none stops the next."""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from minidalle.device import autocast, half_precision, pick_device
from minidalle.evaluation.bench import matmul_rate, peak_memory
from minidalle.rivals import FAMILIES
from minidalle.training.graphs import WARMUP_STEPS, make_trainer
from minidalle.training.recipes import PRESETS
from minidalle.training.stages import STACK, STAGES, StageLoss, frozen_parts, stage_source
from minidalle.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
TOTAL_SECONDS = 650
COMPILED_STEPS = 50
LARGE_BATCH, LARGE_STEPS = 256, 12
CLI = (sys.executable, "-m", "minidalle")
QUIET = ("-q", "-p", "no:cacheprovider", "-p", "no:benchmark")  # of pytest


@dataclass
class Part:
    """One thing to find out."""

    name: str
    command: list[str]
    seconds: int  # at most
    env: dict[str, str] = field(default_factory=dict)
    json_to: str | None = None  # the name under which the JSON that it prints is kept


def parts(work: Path, smoke: bool) -> list[Part]:
    """List what is run, in order: what matters most comes first."""
    pytest, device = [sys.executable, "-m", "pytest", *QUIET], pick_device().type
    own = [sys.executable, __file__, *(["--smoke"] if smoke else [])]
    found = [Part("device tests", [*pytest, "tests/test_devices.py"], 120, {"MINIDALLE_TEST_DEVICE": device})]
    if smoke:
        found += training("quick 0", work, "tiny", "smoke", n=8)
    else:
        found.append(Part("unit tests", [*pytest, "-n", "8"], 150))
        found.append(Part("bench", [*CLI, "bench"], 60, json_to="bench"))
        for seed in range(3):
            found += training(f"quick {seed}", work, "tiny", "quick", seed)
        found += training("colab", work, "colab", "full")
        found += training("full", work, "tiny", "full")
        found += training("emoji", work, "emoji", "full")
    found.append(Part("large", [*own, "--large"], 200, {}, "large"))
    if not smoke:
        for name in rivals():
            found += training(f"rival {name}", work, "tiny", "full", n=200)
        nbval = [*pytest, "-W", "default", "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=120"]
        models = {"MINIDALLE_BUDGET": "quick", "MINIDALLE_MODELS": str(work / "models")}
        found.append(Part("notebooks", [*nbval, "notebooks"], 300, models))
    found.append(Part("compile", [*own, "--compile"], 150, {}, "compile"))
    if smoke:  # which asks whether it works, on any machine, however busy
        found = [replace(part, seconds=10 * part.seconds) for part in found]
    return found


def rivals() -> list[str]:
    """Name the rivals to train; one that is but a stage of another is trained with it."""
    stages = [stage for family in FAMILIES.values() for stage in family.stages if stage != family.name]
    return [name for name in FAMILIES if name not in stages]


def training(name: str, work: Path, preset: str, recipe: str, seed: int = 0, n: int = 500) -> list[Part]:
    """List a training of a whole stack, or of a rival, and its report card."""
    run, what = str(work / name.replace(" ", "-")), name.removeprefix("rival ") if name.startswith("rival ") else "all"
    train = [*CLI, "train", what, "--preset", preset, "--recipe", recipe, "--seed", str(seed), "--out", run]
    card = [*CLI, "evaluate", run, "-n", str(n), "--json"]
    return [Part(f"train {name}", train, 300), Part(f"card {name}", card, 100, {}, name)]


def run(part: Part, log, left: float) -> dict:
    """Run a part and say how it ended; what it prints goes to the log."""
    limit, started = min(part.seconds, left), time.perf_counter()
    if limit < 5:
        return {"state": "not run, no time left"}
    print(f"== {part.name}", file=log, flush=True)
    try:
        done = subprocess.run(
            part.command, cwd=ROOT, env=os.environ | part.env, timeout=limit, text=True, capture_output=True
        )
        output, state = done.stdout, "done" if done.returncode == 0 else f"failed ({done.returncode})"
        errors = done.stderr
    except subprocess.TimeoutExpired as error:
        output, errors = ((x or b"").decode(errors="replace") for x in (error.stdout, error.stderr))
        state = f"stopped after {limit:.0f} s"
    print(output, errors, file=log, flush=True)
    result = {"state": state, "seconds": round(time.perf_counter() - started, 1), "end": (output + errors)[-300:]}
    if part.json_to and state == "done":
        try:
            result["figures"] = json.loads(output[output.index("{") :])
        except ValueError:
            result["state"] = "printed no JSON"
    return result


def compiled_steps(smoke: bool) -> dict:
    """Train each stage for some steps as it is and under torch.compile: seconds of each, losses, peak memory."""
    device, preset = pick_device(), PRESETS["tiny"]
    recipe, steps, result = preset.recipes["quick"], 2 if smoke else COMPILED_STEPS, {}
    for stage in STACK:
        clip = STAGES["clip"].model_class(preset.models["clip"]).to(device).requires_grad_(False)
        frozen = frozen_parts(stage, preset, {"clip": clip} if STAGES[stage].needs else {}, device)
        loss_at = StageLoss(stage, stage_source(stage, preset, recipe, 0), recipe.stages[stage], frozen, device)
        for how in ("plain", "compiled"):
            torch.manual_seed(0)
            model = STAGES[stage].model_class(preset.models[stage]).to(device)
            trainer = Trainer(model, recipe.stages[stage])
            if how == "compiled":
                trainer.model = torch.compile(model, backend="eager" if smoke else "inductor")
            trainer.step(loss_at, 0)
            trainer.mean_loss()  # also waits for the device
            started = time.perf_counter()
            for step in range(1, steps):
                trainer.step(loss_at, step)
            loss = trainer.mean_loss()
            seconds = (time.perf_counter() - started) / (steps - 1)
            result[f"{stage} {how}"] = {"ms a step": round(1000 * seconds, 2), "mean loss": round(loss, 5)}
    if device.type == "cuda":
        result["peak memory MB"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
    return result


def wanted(found: list[Part], names: str | None) -> list[Part]:
    """Keep the parts that were asked for by name; all when none was.

    Raises: SystemExit: when a name is no part's.
    """
    chosen = names.split(",") if names else [part.name for part in found]
    if unknown := set(chosen) - {part.name for part in found}:
        raise SystemExit(f"There is no part {min(unknown)!r}; there are {', '.join(part.name for part in found)}.")
    return [part for part in found if part.name in chosen]


def large_steps(smoke: bool, go: Path | None) -> dict:
    """Train the decoder of the preset large for some steps, optimisers included: how much of the matrix rate is it?

    Args:
        smoke: whether to take the preset tiny in its place, for two steps.
        go: a file that is waited for between the first steps, which compile, and those that are timed.
    """
    device, preset = pick_device(), PRESETS["tiny" if smoke else "large"]
    recipe = preset.recipes["smoke" if smoke else "full"]
    how = replace(recipe.stages["decoder"], batch_size=8 if smoke else LARGE_BATCH)
    clip = STAGES["clip"].model_class(preset.models["clip"]).to(device).requires_grad_(False)
    frozen = frozen_parts("decoder", preset, {"clip": clip}, device)
    loss_at = StageLoss("decoder", stage_source("decoder", preset, recipe, 0), how, frozen, device)
    model = STAGES["decoder"].model_class(preset.models["decoder"]).to(device)
    with FlopCounterMode(display=False) as counter, autocast(device):
        few = replace(how, batch_size=4)
        StageLoss("decoder", loss_at.source, few, frozen, device)(model, 0).backward()
    flops = counter.get_total_flops() / 4 * how.batch_size
    if preset.compiled and device.type == "cuda":
        model.to(memory_format=torch.channels_last).compile()
    trainer, times = make_trainer(model, how, loss_at), []
    started = time.perf_counter()
    for step in range(2 if smoke else WARMUP_STEPS + 2):
        trainer.step(loss_at, step)
    trainer.mean_loss()
    first = time.perf_counter() - started
    while go is not None and not go.exists():
        time.sleep(0.2)
    for step in range(2 if smoke else LARGE_STEPS):
        started = time.perf_counter()
        trainer.step(loss_at, step + 10)
        trainer.mean_loss()  # waits for the device
        times.append(time.perf_counter() - started)
    seconds, peak = statistics.median(times), matmul_rate(device, 256 if smoke else 8192)
    result = {"parameters": sum(p.numel() for p in model.parameters()), "batch size": how.batch_size}
    result |= {"ms a step": round(1000 * seconds, 2), "TFLOP/s": round(flops / seconds / 1e12, 2)}
    result |= {"matmul TFLOP/s": round(peak / 1e12, 2), "share": round(flops / seconds / peak, 3)}
    result |= {"seconds of the first steps": round(first, 1), "peak memory GB": round(peak_memory(device) / 2**30, 1)}
    return result


def machine() -> dict:
    """Describe where this ran."""
    device = pick_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    precision = str(half_precision(device) or torch.float32).removeprefix("torch.")
    return {"device": name, "torch": torch.__version__, "python": sys.version.split()[0], "precision": precision}


def main() -> int:
    """Run all parts and write results.json after each, so that a stopped run leaves what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--compile", action="store_true", help="only train under torch.compile, and print JSON")
    parser.add_argument("--large", action="store_true", help="only train the decoder of large, and print JSON")
    parser.add_argument("--go", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only", metavar="NAMES", help="parts to run, by their names, with commas between them")
    args = parser.parse_args()
    if args.compile:
        print(json.dumps(compiled_steps(args.smoke)))
        return 0
    if args.large:
        print(json.dumps(large_steps(args.smoke, args.go)))
        return 0
    started, results = time.perf_counter(), {"machine": machine(), "parts": {}}
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, (args.out / "log.txt").open("w") as log:
        work = Path(folder)
        for part in wanted(parts(work, args.smoke), args.only):
            left = TOTAL_SECONDS - (time.perf_counter() - started)
            results["parts"][part.name] = run(part, log, left)
            (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
            print(f"{part.name}: {results['parts'][part.name]['state']}", flush=True)
        for path in (work / "full").glob("*.safetensors"):
            shutil.copy(path, args.out)
    states = [result["state"] for result in results["parts"].values()]
    print(f"{states.count('done')} of {len(states)} parts done; figures in {args.out / 'results.json'}")
    return 0 if all(state == "done" for state in states) else 1


if __name__ == "__main__":
    sys.exit(main())
