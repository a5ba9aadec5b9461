"""What the notebooks share: the right pieces are found and named, losses are drawn and judged, the budget is kept."""

from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from conftest import MICRO

from minidalle import checkpoint, course
from minidalle.ar_prior import AutoregressivePriorConfig
from minidalle.checkpoint import load_model, save_model
from minidalle.clip import CLIP
from minidalle.course import live, pieces, session
from minidalle.decoder import Decoder
from minidalle.losses import AutoregressivePriorLossConfig
from minidalle.training.run import train
from minidalle.world.grammar import parse
from minidalle.world.render import render
from minidalle.world.scenes import Object, Scene

SCENES = [Scene((Object("circle", color, "large", 0.0, 0.0),), "white") for color in ("red", "green", "orange")]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Path:
    """Train what takes the place of the shipped weights, from another seed than the course trains with."""
    folder = tmp_path_factory.mktemp("shipped") / "run"
    train(MICRO, "quick", folder, seed=1)
    return folder


@pytest.fixture(autouse=True)
def classroom(tmp_path, monkeypatch, shipped) -> Path:
    """Sit down in an empty folder, with the micro run for the shipped weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pieces, "find_folder", lambda name: shipped)
    monkeypatch.setattr(session, "TINY", replace(MICRO, name="micro"))
    monkeypatch.setattr(session, "pick_device", lambda: torch.device("cpu"))
    for name in ("BUDGET", "SEED", "MODELS"):
        monkeypatch.delenv(f"MINIDALLE_{name}", raising=False)
    course.begin("00_welcome")
    return tmp_path


def same(model: torch.nn.Module, folder: Path, kind: str) -> bool:
    weights = checkpoint.load(folder / f"{kind}.safetensors", kind)[0]
    return all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_a_notebook_compares_in_full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    course.begin("06_guidance")
    assert not torch.backends.cudnn.allow_tf32


def test_the_budget_comes_from_the_environment(monkeypatch):
    assert course.budget() == "quick" and course.steps(100) == 100
    monkeypatch.setenv("MINIDALLE_BUDGET", "smoke")
    assert (course.steps(100), course.steps(10), course.steps(100, smoke=7)) == (5, 2, 7)
    course.check(False, "nothing is asked at the smoke budget")
    monkeypatch.setenv("MINIDALLE_BUDGET", "full")
    assert (course.steps(100), course.steps(100, full=150)) == (400, 150)
    with pytest.raises(AssertionError, match="must hold"):
        course.check(False, "must hold")
    monkeypatch.setenv("MINIDALLE_BUDGET", "fast")
    with pytest.raises(ValueError, match='MINIDALLE_BUDGET is "fast"; choose one of smoke, quick, full'):
        course.budget()


def test_the_seed_comes_from_the_environment(monkeypatch):
    assert course.seed() == 0
    monkeypatch.setenv("MINIDALLE_SEED", "7")
    course.train("clip")
    assert session.pieces().own("clip")["seed"] == 7
    monkeypatch.setenv("MINIDALLE_SEED", "seven")
    with pytest.raises(ValueError, match=r'MINIDALLE_SEED is "seven"; a whole number from 0 to .* was expected'):
        course.seed()


def test_a_notebook_alone_gets_the_shipped_pieces(shipped, capsys):
    course.begin("08_decoder")
    said = capsys.readouterr().out
    assert "device: cpu" in said and "budget: quick" in said
    assert "prior: shipped (notebook 07 trains your own)" in said
    prior = course.load("prior")
    assert same(prior, shipped, "prior") and not prior.training
    assert not any(p.requires_grad for p in prior.parameters())
    assert capsys.readouterr().out == "prior: shipped (notebook 07 trains your own)\n"
    with pytest.raises(ValueError, match='"sampler" is no piece'):
        course.load("sampler")


def test_what_is_trained_is_kept_drawn_and_found_again(classroom, shipped, capsys):
    clip = course.train("clip")
    said = capsys.readouterr().out
    assert "Loss of clip" in said and "clip: 12 steps in" in said
    assert "it/s" not in capsys.readouterr().err  # no progress bar
    assert same(clip, classroom / "my_models", "clip") and not clip.training
    course.begin("07_prior")
    course.train("prior")
    course.begin("08_decoder")
    course.train("decoder")
    capsys.readouterr()
    pipe = course.pipeline()
    assert capsys.readouterr().out.count("yours (my_models, quick budget") == 3
    assert all(same(getattr(pipe, kind), classroom / "my_models", kind) for kind in ("clip", "prior", "decoder"))
    assert len(pipe("a red circle", num_inference_steps=2).images) == 1


def test_pieces_of_two_clips_are_never_mixed(classroom, shipped, capsys):
    course.train("clip")
    assert same(course.load("clip"), classroom / "my_models", "clip")
    course.begin("08_decoder")  # needs a prior, and there is only the one that knows the shipped CLIP
    assert "clip: shipped (yours has no prior yet: notebook 07)" in capsys.readouterr().out
    assert same(course.load("clip"), shipped, "clip")
    course.train("decoder")
    assert load_model(Decoder, Path("my_models"))[1]["clip"] == load_model(CLIP, shipped)[1]["sha256"]
    pipe = course.pipeline()
    assert same(pipe.clip, shipped, "clip") and same(pipe.prior, shipped, "prior")
    assert same(pipe.decoder, classroom / "my_models", "decoder")

    course.begin("07_prior")
    course.train("prior")  # of your CLIP: the decoder no longer belongs to it
    capsys.readouterr()
    assert same(course.load("prior"), classroom / "my_models", "prior")
    course.load("decoder")
    assert "It knows the shipped CLIP and not yours: train it in notebook 08" in capsys.readouterr().out
    course.begin("10_dalle2")
    assert "clip: shipped (yours has no decoder yet: notebook 08)" in capsys.readouterr().out


def test_a_prior_of_an_older_clip_is_not_used(classroom, shipped, capsys):
    train(MICRO, "quick", classroom / "my_models", ("clip", "prior"))
    assert same(course.load("prior"), classroom / "my_models", "prior")
    save_model(classroom / "my_models", CLIP(MICRO.models["clip"]), {"recipe": "quick", "seconds": 1.0})
    course.begin("08_decoder")
    assert same(course.load("clip"), shipped, "clip")


def test_damaged_and_smoke_pieces_are_passed_over(classroom, shipped, monkeypatch, capsys):
    folder = classroom / "my_models"
    folder.mkdir()
    (folder / "clip.safetensors").write_bytes(b"damaged")
    assert same(course.load("clip"), shipped, "clip")
    assert "yours is damaged" in capsys.readouterr().out
    save_model(folder, CLIP(MICRO.models["clip"]), {"recipe": "smoke", "seconds": 1.0})
    assert same(course.load("clip"), shipped, "clip")
    monkeypatch.setenv("MINIDALLE_BUDGET", "smoke")
    assert same(course.load("clip"), folder, "clip")


def test_theory_says_what_knowing_nothing_costs(shipped):
    device = torch.device("cpu")
    (clip,) = session.theory_lines("clip", shipped, device).values()
    assert clip == pytest.approx(2.0794, abs=1e-3)  # ln 8
    (prior,) = session.theory_lines("prior", shipped, device).values()
    assert 0 < prior < 1  # of coordinates whose mean square is 1
    (upsampler,) = session.theory_lines("upsampler", shipped, device).values()
    assert 0 < upsampler < 0.1  # of pictures that are mostly plain
    state = torch.get_rng_state()
    (decoder,) = session.theory_lines("decoder", shipped, device).values()
    assert decoder > 0 and torch.equal(state, torch.get_rng_state())


def test_the_other_prior_can_be_trained_and_loaded_too(classroom, monkeypatch):
    with pytest.raises(checkpoint.CheckpointError, match=r'There is no ar_prior, .*: train it by course\.train\("ar'):
        course.load("ar_prior")
    length, quick = MICRO.models["clip"].context_length, MICRO.recipes["quick"]
    sizes = AutoregressivePriorConfig(length, 16, 16, width=16, depth=1, num_heads=2, num_coordinates=8, num_buckets=8)
    how = replace(quick.stages["prior"], loss=AutoregressivePriorLossConfig())
    recipes = {"quick": replace(quick, stages={**quick.stages, "ar_prior": how})}
    preset = replace(MICRO, models={**MICRO.models, "ar_prior": sizes}, recipes=recipes)
    monkeypatch.setattr(session, "TINY", preset)
    trained = course.train("ar_prior")
    assert same(trained, classroom / "my_models", "ar_prior")
    assert same(course.load("ar_prior"), classroom / "my_models", "ar_prior")
    (guess,) = session.theory_lines("ar_prior", session.pieces().clip_folder(), torch.device("cpu")).values()
    assert guess == pytest.approx(2.0794, abs=1e-3)  # ln 8


def test_what_knowing_nothing_costs_is_a_mean_over_steps(shipped, monkeypatch):
    monkeypatch.setattr(session, "StageLoss", lambda *_: lambda answer, step: torch.tensor(float(step + 1)))
    assert list(session.theory_lines("upsampler", shipped, torch.device("cpu")).values()) == [2.5]


class Handle:
    """Stands for what Jupyter gives to change a picture."""

    def __init__(self):
        self.alts = []

    def update(self, data: dict, **_) -> None:
        self.alts.append(data["text/plain"])


def test_a_live_loss_is_redrawn_in_one_place_and_not_too_often(monkeypatch):
    handles, clock = [], [0.0]

    def show(data: dict, metadata: dict, **options):
        handles.append(Handle())
        handles[-1].update(data)
        return handles[-1]

    monkeypatch.setattr(live.figures, "display_bundle", show)
    monkeypatch.setattr(live.time, "perf_counter", lambda: clock[0])
    drawn = course.LiveLoss("mine", total=100)
    for step in range(1, 101):
        clock[0] += 0.3
        drawn({"step": step, "loss": 1 / step})
    drawn.done()
    (handle,) = handles
    assert 4 <= len(handle.alts) <= 7
    assert handle.alts[-1] == "Loss of mine: 1 at step 1, 0.01 at step 100."


@pytest.mark.parametrize(
    ("loss", "word"),
    [
        (0.5, "better than"),
        (0.79, "better than"),
        (0.81, "where it should be"),  # a few seeds do not reach the ends of what seeds can do
        (1.1, "where it should be"),
        (1.39, "where it should be"),
        (1.41, "worse than"),
        (2.0, "worse than"),
    ],
)
def test_a_loss_is_judged_by_the_reference_seeds(loss, word):
    seeds = [{"steps": [50, 100], "losses": [2.0, end]} for end in (1.0, 1.1, 1.2)]
    live = course.LiveLoss("clip", seeds, total=100)
    live({"step": 50, "loss": 2.0})
    assert live.verdict() == ""
    live({"step": 100, "loss": loss})
    assert word in live.verdict() and "3 reference seeds (1 to 1.2)" in live.verdict()


def test_the_oracle_counts_exact_matches():
    images = render(SCENES, 32)
    asked = ["a red circle", "a green shape on a white background", "an orange square"]
    assert course.exact_match(images, asked).hits == 2
    assert course.exact_match(images, [parse(caption) for caption in asked]).n == 3
    assert course.exact_match(1.1 * images, asked).hits == 2  # samples may leave the range
    with pytest.raises(ValueError, match="3 pictures and 1 descriptions"):
        course.exact_match(images, ["a red circle"])


def test_the_badge_is_made_from_the_repositorys_address(monkeypatch):
    urls = ["Homepage, https://example.org", "Repository, https://github.com/someone/something"]
    monkeypatch.setattr(metadata, "metadata", lambda name: type("", (), {"get_all": lambda self, key: urls})())
    assert session.badge("02_clip").endswith(
        "(https://colab.research.google.com/github/someone/something/blob/main/notebooks/02_clip.ipynb)"
    )
    urls.pop()
    with pytest.raises(ValueError, match="install it again"):
        session.badge("02_clip")
