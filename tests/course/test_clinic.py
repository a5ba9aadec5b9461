"""The clinic: every mistake moves its instrument, and diagnoses are judged, explained and not written down plainly."""

import inspect
import re
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch

from minidalle import losses
from minidalle.checkpoint import CheckpointError
from minidalle.course import clinic
from minidalle.course.clinic import diagnosis, instruments, make, mistakes, patients
from minidalle.course.clinic.mistakes import MISTAKES, RECIPES, Habits, SmallWorld
from minidalle.diffusion import GaussianDiffusion, cosine_betas, guided
from minidalle.samplers import ddpm_sample_loop, last
from minidalle.training.stages import step_generator

ROOT = Path(__file__).parents[2]
SEEDS = (0, 1, 2)
ILL = [name for name in MISTAKES if name != "healthy"]
TRAINED = [name for name in ILL if mistakes.stages_of(MISTAKES[name])]


@pytest.fixture(scope="module", autouse=True)
def small():
    """Draw few pictures in few steps, as the smoke budget would."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in ((instruments, "DRAWN", 6), (instruments, "SAME", 6), (patients, "STEPS", 10)):
            patch.setattr(module, name, value)
        yield


@pytest.fixture(scope="module")
def healthy():
    return clinic.load("healthy")


@cache
def readings(name: str, function) -> list[dict[str, float]]:
    """Read one group of instruments of a system with three seeds."""
    subject = clinic.load(name)
    return [function(subject, seed) for seed in SEEDS]


def group_of(instrument: str):
    """Find the function that reads an instrument."""
    return next(f for f in instruments.INSTRUMENTS if f'"{instrument}"' in inspect.getsource(f))


@pytest.mark.parametrize("name", ILL)
def test_a_mistake_moves_its_instrument_by_more_than_the_spread_over_seeds(name):
    case = clinic.CASES[name]
    group = group_of(case.instrument)
    right, wrong = ([r[case.instrument] for r in readings(who, group)] for who in ("healthy", name))
    spread = max(max(right) - min(right), max(wrong) - min(wrong))
    gap = min(wrong) - max(right) if case.moves == "up" else min(right) - max(wrong)
    assert gap > spread, (right, wrong)


def test_every_mistake_is_known_shown_and_has_a_patient():
    assert set(clinic.CASES) == set(ILL) and len(ILL) >= 12
    assert sorted(diagnosis.mistake_of(number) for number in range(1, 15)) == sorted(MISTAKES)
    table = (ROOT / "docs" / "symptoms.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 12 and all(re.search(r"\| \d\d(, \d\d)* \|$", row) for row in rows)


def test_nobody_reads_an_answer_by_accident():
    written = inspect.getsource(diagnosis).split("CASES")[0]
    assert not [name for name in ILL if name in written]
    assert not [name for name in ILL for path in (ROOT / "data" / "clinic").iterdir() if name in path.name]
    assert repr(clinic.patient(3)) == "patient 3"


def test_the_files_are_small():
    assert sum(path.stat().st_size for path in (ROOT / "data" / "clinic").iterdir()) <= 3_000_000


def test_a_healthy_patient_draws_as_the_package_does(healthy):
    captions = ["a red circle", "a blue square at the top left"]
    drawing = healthy.draw(captions, seed=5, noise_seed=6)
    first = torch.Generator().manual_seed(5)
    x_t, text = torch.randn(2, 3, 32, 32, generator=first), healthy.encode(captions)
    z_image, both = healthy.find_z(text, first), text.tile(2)
    assert torch.equal(drawing.z_images[0], z_image) and torch.allclose(z_image.norm(dim=1), torch.ones(2))

    def model(x_t, t, hide):
        return healthy.decoder(x_t, t, torch.cat([z_image, z_image]), both, hide, hide)

    diffusion = GaussianDiffusion(cosine_betas(1000), "x_start")
    with torch.no_grad():
        steps = ddpm_sample_loop(
            diffusion, guided(model, patients.GUIDANCE), x_t, patients.STEPS, True, torch.Generator().manual_seed(6)
        )
        assert torch.allclose(drawing.images, last(steps).clamp(-1, 1), atol=1e-4)
    assert not torch.equal(healthy.draw(captions, seed=5, noise_seed=7).halfway, drawing.halfway)


def test_healthy_losses_are_those_of_the_package(healthy):
    batch = SmallWorld(3).batch(0, 8)
    diffusion = GaussianDiffusion(cosine_betas(1000), "x_start")
    how = RECIPES["prior"].loss, diffusion
    ours = mistakes.prior_loss(healthy.prior, batch, step_generator(0, 0), Habits(), healthy.clip)
    theirs = losses.prior_loss(healthy.prior, batch, step_generator(0, 0), how[0], healthy.clip, diffusion)
    assert torch.allclose(ours, theirs)
    ours = mistakes.decoder_loss(healthy.decoder, batch, step_generator(0, 1), Habits(), healthy.clip)
    theirs = losses.decoder_loss(
        healthy.decoder, batch, step_generator(0, 1), RECIPES["decoder"].loss, healthy.clip, diffusion
    )
    assert torch.allclose(ours, theirs)
    assert torch.allclose(
        mistakes.clip_loss(healthy.clip, batch, Habits()), losses.clip_loss(healthy.clip, batch, step_generator(0, 2))
    )


@pytest.mark.parametrize("name", TRAINED)
def test_a_mistake_can_be_made_again(name, healthy, tmp_path):
    """Two steps of each training, written and read back."""
    others = {"clip": healthy.clip, "prior": healthy.prior, "decoder": healthy.decoder}
    models = mistakes.train(MISTAKES[name], seed=1, steps=2, healthy=others)
    assert tuple(models) == mistakes.stages_of(MISTAKES[name])
    make.save(tmp_path / "a.safetensors", models)
    back = patients.read(tmp_path / "a.safetensors")
    for kind, model in models.items():
        old, new = model.state_dict(), back[kind].state_dict()
        assert all(torch.allclose(old[key], new[key], atol=1e-2) for key in old)
    frozen = mistakes.train_prior(MISTAKES["healthy"], healthy.clip, steps=2)[0]
    assert all(map(torch.equal, frozen.parameters(), healthy.clip.parameters()))


def test_a_clip_that_is_not_frozen_moves(healthy):
    moved, _ = mistakes.train_prior(MISTAKES["CLIP not frozen"], healthy.clip, steps=3)
    assert not all(map(torch.equal, moved.parameters(), healthy.clip.parameters()))
    assert not any(p.requires_grad for p in healthy.clip.parameters())


def test_weights_that_are_not_averaged_are_others(healthy):
    plain, averaged = (mistakes.train(MISTAKES[name], 0, 3, None)["clip"] for name in ("EMA forgotten", "healthy"))
    assert not all(map(torch.equal, plain.parameters(), averaged.parameters()))


def test_a_diagnosis_is_judged_and_explained(capsys):
    number = next(n for n in range(1, 15) if diagnosis.mistake_of(n) == "unscaled z_image")
    assert clinic.diagnose(number, "unscaled z_image")
    assert "right. " in (said := capsys.readouterr().out) and "Mend: " in said
    assert not clinic.diagnose(number, "pictures in [0, 1]")
    assert 'no. That moves "pixels: darkest" up; here it is -0.843' in capsys.readouterr().out
    assert not clinic.diagnose(number, "healthy")
    assert "Look at " in capsys.readouterr().out
    well = next(n for n in range(1, 15) if diagnosis.mistake_of(n) == "healthy")
    assert clinic.diagnose(well, "healthy") and clinic.is_right(well, "healthy")


def test_a_report_marks_what_is_ill():
    (low, high) = clinic.healthy_ranges()["prior: loss"]
    width = high - low
    assert [clinic.mark("prior: loss", x) for x in (low, high, high + 3 * width + 1, low - 3 * width - 1)] == [
        "", "", "HIGH", "LOW"
    ]  # fmt: skip
    text = clinic.report({"prior: loss": high + 1})
    assert text.splitlines()[1].endswith("HIGH") and "prior: loss" in text
    figure = clinic.chart({"patient 1": {"prior: loss": high + 1}, "patient 2": {"prior: loss": low}})
    assert [text.get_text() for text in figure.axes[0].texts] == ["H", ""]


def test_mended_habits_make_a_sampler_healthy(healthy):
    captions = ["a red circle"]
    mended = clinic.load("variance for deviation").changed(noise="deviation")
    assert torch.equal(mended.draw(captions).images, healthy.draw(captions).images)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: clinic.patient(0), "The number of a patient"),
        (lambda: clinic.patient(15), "15"),
        (lambda: clinic.patient("one"), "The number of a patient"),
        (lambda: clinic.load("flu"), '"flu" is no mistake of the clinic; choose one of healthy, '),
        (lambda: clinic.diagnose(1, "flu"), '"flu" is no diagnosis; choose one of healthy, '),
    ],
)
def test_what_does_not_exist_is_refused(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


def test_a_damaged_file_is_refused(tmp_path):
    path = shutil.copy(patients.path_of("healthy"), tmp_path / "healthy.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 255
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="altered"):
        patients.read(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        patients.read(tmp_path / "nothing.safetensors")
