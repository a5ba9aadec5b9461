"""Reference curves: what is shipped is the runs' own losses, thinned, and of one recipe only."""

import json

import pytest
from conftest import MICRO

from minidalle.cli import main
from minidalle.evaluation import curves
from minidalle.evaluation.sign_card import ask
from minidalle.rivals import FAMILIES, VARIANTS
from minidalle.training.recipes import PRESETS, TINY
from minidalle.training.run import train
from minidalle.training.stages import STACK


@pytest.fixture
def run(tmp_path, micro_run):
    """Make a folder that looks like a run of another seed, with metrics of 500 lines."""

    def make(seed: int, recipe: str = "quick"):
        folder = tmp_path / f"{recipe}{seed}"
        folder.mkdir()
        for stage in STACK:
            header = {"preset": "micro", "recipe": recipe, "seed": seed}
            curves.checkpoint.save(folder / f"{stage}.safetensors", stage, {}, header)
            lines = [{"step": 10 * n, "loss": 1000.0 / n + seed, "seconds": n} for n in range(1, 501)]
            (folder / f"{stage}.metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return make


def test_the_command_writes_thinned_curves_that_load_finds(run, tmp_path, monkeypatch, capsys):
    path = tmp_path / "reference" / "micro.json"
    assert main(["reference", *(str(run(seed)) for seed in range(3)), "--out", str(path)]) == 0
    assert f"Wrote {path}" in capsys.readouterr().out
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(curves, "FOLDERS", (tmp_path / "none", path.parent))
    for stage in STACK:
        found = curves.load("micro", "quick", stage)
        assert len(found) == 3
        for seed, curve in enumerate(found):
            assert len(curve["steps"]) == len(curve["losses"]) <= 60 and curve["steps"][-1] == 5000
            assert curve["steps"][0] == 90  # nine lines a point, drawn at the last of them
            assert curve["losses"][0] == pytest.approx(sum(1000 / n for n in range(1, 10)) / 9 + seed, rel=1e-3)
    assert curves.load("micro", "full", "clip") == curves.load("other", "quick", "clip") == []


def test_short_curves_are_kept_whole(tmp_path, micro_run):
    train(MICRO, "quick", tmp_path, seed=1)
    made = curves.make([micro_run, tmp_path])
    assert (made["preset"], made["recipe"]) == ("micro", "quick")
    assert set(made["stages"]) == set(STACK)
    assert all(curve["steps"] == [10, 12] for seeds in made["stages"].values() for curve in seeds.values())
    assert json.loads(curves.to_json(made)) == made


def test_runs_that_do_not_belong_together_are_refused(run, capsys):
    first = run(0)
    with pytest.raises(ValueError, match=r"the seed 0 of clip comes twice"):
        curves.make([first, first])
    with pytest.raises(ValueError, match=r"full of micro, quick of micro; name runs of one recipe"):
        curves.make([first, run(1, "full")])
    (first / "prior.metrics.jsonl").unlink()
    assert main(["reference", str(first)]) == 1
    assert "prior.metrics.jsonl does not exist" in capsys.readouterr().err


def test_the_final_loss_is_the_mean_of_the_last_tenth():
    curve = [(step, float(step)) for step in range(10, 110, 10)]
    assert curves.final_loss(curve) == 100.0
    assert curves.final_loss({"steps": [50, 95, 100], "losses": [9.0, 2.0, 4.0]}) == 3.0


CARDS = ("rivals.json", "along_training.json", "signs.json")  # measured by tools, not the curves of losses


def test_what_is_shipped_is_of_this_package():
    for folder in curves.FOLDERS:
        for path in set(folder.glob("*.json")) - {folder / name for name in CARDS}:
            found = json.loads(path.read_text())
            assert path.stem == found["preset"]
            if path.stem in PRESETS:
                assert set(found["stages"]) >= set(STACK)
            else:
                assert (path.parent.parent.parent / "notebooks" / f"{path.stem}.ipynb").is_file()
            assert all(len(seeds) >= 3 for seeds in found["stages"].values())


def test_the_cards_of_rivals_are_of_families_that_there_are():
    rows = curves.shipped("rivals.json")
    quick = [(row["family"], row["seed"]) for row in rows if row["recipe"] == "quick"]
    assert {name for name, _ in quick} == {*VARIANTS, *FAMILIES} and len(set(quick)) == len(quick)
    assert {row["recipe"] for row in rows} == {"quick", "full"}
    assert all(row["card"]["following"]["one object, held out"]["exact"]["n"] >= 200 for row in rows)
    with pytest.raises(ValueError, match=r"nothing\.json does not come with this package"):
        curves.shipped("nothing.json")


def test_what_was_measured_along_training_is_of_whole_trainings_of_the_recipe_as_it_is():
    runs = curves.shipped("along_training.json")
    assert sorted((run["embedding"], run["seed"]) for run in runs) == [
        (e, s) for e in ("z_image", "z_text") for s in range(3)
    ]
    for run in runs:
        assert run["steps"][-1] == run["loss"]["steps"][-1] == TINY.recipes["quick"].stages["decoder"].steps
        rows = [row for split in run["hits"].values() for hits in split.values() for row in hits.values()]
        assert all(len(row) == len(run["steps"]) and 0 <= min(row) <= max(row) <= run["n"] for row in rows)


def test_the_cards_of_signs_are_of_two_trainings():
    rows = curves.shipped("signs.json")
    assert [row["seed"] for row in rows] == [0, 1] and all(row["card"]["n"] == 300 for row in rows)
    assert all(row["card"]["spelling"]["seen"]["true picture"]["word"]["share"] == 1 for row in rows)
    for card in (row["card"] for row in rows):  # of prompts as they are asked today
        asked = ask("plain", "held out", card["n"], f"signs/objects/held out/{card['seed']}")
        found = card["following"]["objects, held out"]
        assert found["shape"]["n"] == sum(facts.shape is not None for facts in asked)


@pytest.mark.parametrize("stage", [*STACK, "upsampler"])
def test_the_shipped_curves_are_three_seeds_of_the_recipe_as_it_is(stage):
    found = curves.load("tiny", "quick", stage)
    assert len(found) == 3
    assert {curve["steps"][-1] for curve in found} == {TINY.recipes["quick"].stages[stage].steps}


@pytest.mark.parametrize(
    ("notebook", "stage"), [("04_reverse_diffusion", "denoiser"), ("05_unet", "unet"), ("06_guidance", "unet")]
)
def test_notebooks_that_train_a_model_of_their_own_have_curves(notebook, stage):
    assert len(curves.load(notebook, "quick", stage)) == 3 and curves.load(notebook, "full", stage) == []
