"""Either prior in the pipeline: loaded by name, drawn by the same call, trained as a stage."""

from dataclasses import replace

import pytest
import torch
from conftest import MICRO

from minidalle.ar_prior import AutoregressivePrior, AutoregressivePriorConfig
from minidalle.checkpoint import CheckpointError, MissingError, load_model, read_header, save_model
from minidalle.evaluation.report import count_calls
from minidalle.losses import AutoregressivePriorLossConfig
from minidalle.pipeline import CLIP, Decoder, DiffusionPrior, MiniDalle
from minidalle.training.recipes import TINY
from minidalle.training.run import train
from minidalle.training.stages import STAGES, fit_buckets, stage_source
from minidalle.world.captions import TOKENIZER

SIZES = AutoregressivePriorConfig(
    context_length=TOKENIZER.context_length, embed_dim=16, text_width=16, width=16, depth=1, num_heads=2,
    num_coordinates=6, num_buckets=8,
)  # fmt: skip
QUICK = MICRO.recipes["quick"]
HOW = replace(QUICK.stages["prior"], loss=AutoregressivePriorLossConfig())
BOTH = replace(
    MICRO,
    models=MICRO.models | {"ar_prior": SIZES},
    recipes={"quick": replace(QUICK, stages=QUICK.stages | {"ar_prior": HOW})},
)


@pytest.fixture(scope="module")
def folder(micro_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    for name in ("clip", "prior", "decoder"):
        (folder / f"{name}.safetensors").write_bytes((micro_run / f"{name}.safetensors").read_bytes())
    train(BOTH, "quick", folder, ("ar_prior",))
    return folder


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_prior_is_loaded_by_its_name(folder, micro_run):
    assert isinstance(MiniDalle.from_pretrained(folder, "cpu").prior, DiffusionPrior)
    assert isinstance(MiniDalle.from_pretrained(folder, "cpu", prior="autoregressive").prior, AutoregressivePrior)
    with pytest.raises(ValueError, match='"best" is no prior; choose one of diffusion, autoregressive'):
        MiniDalle.from_pretrained(folder, "cpu", prior="best")
    with pytest.raises(MissingError, match=r"ar_prior\.safetensors does not exist"):
        MiniDalle.from_pretrained(micro_run, "cpu", prior="autoregressive")


def test_a_prior_of_another_clip_is_refused(folder, tmp_path):
    for name in ("clip", "prior", "decoder"):
        (tmp_path / f"{name}.safetensors").write_bytes((folder / f"{name}.safetensors").read_bytes())
    model, header = load_model(AutoregressivePrior, folder)
    meta = {key: value for key, value in header.items() if key not in ("format_version", "kind", "sha256", "config")}
    save_model(tmp_path, model, meta | {"clip": "0" * 64})
    with pytest.raises(CheckpointError, match="was trained with another CLIP"):
        MiniDalle.from_pretrained(tmp_path, "cpu", prior="autoregressive")


def test_of_two_priors_among_the_pieces_the_one_called_prior_is_taken(folder):
    loaded = {m.kind: load_model(m, folder) for m in (CLIP, DiffusionPrior, AutoregressivePrior, Decoder)}
    pipe = MiniDalle.from_pieces(loaded, torch.device("cpu"))
    assert pipe.prior is loaded["prior"][0]
    swapped = MiniDalle.from_pieces(loaded | {"prior": loaded["ar_prior"]}, torch.device("cpu"))
    assert swapped.prior is loaded["ar_prior"][0]


def test_the_same_call_draws_with_either(folder):
    pipe = MiniDalle.from_pretrained(folder, "cpu", prior="autoregressive")
    prompts, seeds = ["a red circle", "a blue square above a ring"], [noise(1), noise(2)]
    out = pipe(prompts, 2, generator=seeds)
    assert out.tensor.shape == (2, 3, 16, 16) and (out.z_image.norm(dim=1) - 1).abs().max() < 1e-5
    alone = pipe(prompts[1], 2, generator=[noise(2)])
    torch.testing.assert_close(alone.z_image, out.z_image[1:], atol=1e-4, rtol=0)
    again = pipe(prompts, 2, generator=[noise(1), noise(2)], prior_guidance_scale=9.0)
    assert not torch.equal(again.z_image, out.z_image)
    assert count_calls(pipe) == {"text tower": 1, "prior": 7, "decoder": 8}
    with pytest.raises(ValueError, match="guidance_scale is nan"):
        pipe(prompts, 2, prior_guidance_scale=float("nan"))


def test_of_several_candidates_the_one_near_the_caption_is_taken(folder):
    pipe = MiniDalle.from_pretrained(folder, "cpu", prior="autoregressive")
    text = pipe.encode(["a red circle"] * 40)
    one, four = (pipe.sample_prior(text, generator=noise(), num_candidates=number, margin=0.0) for number in (1, 4))
    cosines = [float((z * text.z_text).sum(1).mean()) for z in (one, four)]
    assert cosines[1] > cosines[0]


def test_buckets_are_fitted_to_the_pictures_of_the_training(folder):
    clip, model = load_model(CLIP, folder)[0], AutoregressivePrior(SIZES)
    source = stage_source("ar_prior", BOTH, BOTH.recipes["quick"], 0)
    STAGES["ar_prior"].before(model, source, clip=clip)
    assert STAGES["ar_prior"].before is fit_buckets
    batch = source.batch(3, 64)
    z_image, z_text = clip.encode_image(batch.images), clip.encode_text(batch.tokens, batch.mask).z_text
    restored = model.restore(model.quantize(z_image, z_text))
    assert (restored * z_image).sum(1).mean() > 0.97
    assert ((model.numbers(z_image, z_text) >= model.low) & (model.numbers(z_image, z_text) <= model.high)).all()


def test_the_trained_stage_says_what_shaped_it(folder):
    header = read_header(folder / "ar_prior.safetensors", "ar_prior")
    assert header["stage"]["loss"] == {"p_drop_text": 0.1, "p_drop_buckets": 0.5, "blur": 1.0}
    assert "diffusion" not in header
    assert header["clip"] == read_header(folder / "clip.safetensors", "clip")["sha256"]
    assert TINY.models["ar_prior"].num_coordinates == 32 and "ar_prior" in TINY.recipes["full"].stages
