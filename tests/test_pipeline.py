"""The whole system: the same noise gives the same pictures, and what cannot be drawn is refused in a sentence."""

import shutil

import pytest
import torch
from conftest import MICRO

from minidalle import checkpoint
from minidalle.checkpoint import CheckpointError, find_folder, load_model, save_model
from minidalle.clip import CLIP
from minidalle.data.images import from_pil
from minidalle.decoder import Decoder
from minidalle.device import autocast
from minidalle.pipeline import MiniDalle
from minidalle.prior import CANDIDATE_SLACK, DiffusionPrior

PROMPT = "a red circle above a blue square"


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(pipe: MiniDalle, prompt=PROMPT, seed: int = 0, **options):
    return pipe(prompt, **{"num_inference_steps": 3, "generator": noise(seed), **options})


@pytest.fixture
def calls(pipe) -> dict[str, int]:
    """Count how often each network is asked."""
    counts = {"prior": 0, "decoder": 0}

    def counter(name):
        def hook(*_):
            counts[name] += 1

        return hook

    for name in counts:
        getattr(pipe, name).register_forward_hook(counter(name))
    return counts


def test_the_output_has_the_promised_form(pipe):
    out = draw(pipe)
    assert out.tensor.shape == (1, 3, 16, 16) and out.tensor.dtype == torch.float32
    assert out.tensor.min() >= -1 and out.tensor.max() <= 1
    assert len(out.images) == 1 and out.images[0].size == (16, 16)
    assert (from_pil(out.images, 16) - out.tensor).abs().max() <= 1 / 127.5
    torch.testing.assert_close(out.z_image.norm(dim=1), torch.ones(1))
    assert out.steps == []


@pytest.mark.parametrize("sampler", ["dpm", "ddim", "ddpm"])
def test_the_same_generator_gives_the_same_pictures(pipe, sampler):
    first, again, other = (draw(pipe, seed=seed, sampler=sampler) for seed in (0, 0, 1))
    assert torch.equal(first.tensor, again.tensor) and torch.equal(first.z_image, again.z_image)
    assert not torch.equal(first.tensor, other.tensor)


def test_without_a_generator_the_global_seed_counts(pipe):
    torch.manual_seed(5)
    first, second = draw(pipe, generator=None), draw(pipe, generator=None)
    torch.manual_seed(5)
    assert torch.equal(draw(pipe, generator=None).tensor, first.tensor)
    assert not torch.equal(first.tensor, second.tensor)


def test_several_prompts_and_several_pictures_of_each_come_in_order(pipe):
    prompts = ["a red circle", "a small blue square at the top left"]
    out = draw(pipe, prompts, num_images_per_prompt=3)
    assert len(out.images) == 6 and len(out.z_image) == 6
    assert len({picture.tobytes() for picture in out.images}) == 6
    z_text = pipe.encode(prompts).repeat(3).z_text
    assert torch.equal(z_text[:3], z_text[:1].expand(3, -1)) and not torch.equal(z_text[2], z_text[3])


def test_a_prompt_is_drawn_alike_alone_and_beside_a_longer_one(pipe):
    prompts = ["a red circle", "on a grey background a large pink ring to the right of a small green cross"]
    z_image = torch.nn.functional.normalize(torch.randn(2, 16), dim=1)
    alone, beside = pipe.encode(prompts[:1]), pipe.encode(prompts)
    torch.testing.assert_close(alone.z_text, beside.z_text[:1])
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([500, 500])
    both = pipe.decoder(x, t, z_image, beside.text_states, beside.mask)
    one = pipe.decoder(x[:1], t[:1], z_image[:1], alone.text_states, alone.mask)
    torch.testing.assert_close(one, both[:1], atol=1e-4, rtol=1e-4)


def test_a_given_z_image_is_drawn_in_place_of_the_priors(pipe, calls):
    z_image = torch.nn.functional.normalize(torch.randn(2, 16), dim=1)
    out = draw(pipe, z_image=z_image, num_images_per_prompt=2)
    assert torch.equal(out.z_image, z_image)
    assert calls["prior"] == 0
    assert not torch.equal(draw(pipe, z_image=-z_image, num_images_per_prompt=2).tensor, out.tensor)
    assert torch.equal(draw(pipe, z_image=z_image, num_images_per_prompt=2).tensor, out.tensor)


@pytest.mark.parametrize(("options", "expected"), [
    ({}, {"prior": 64, "decoder": 3}),
    ({"guidance_scale": 1.0, "prior_guidance_scale": 1.5}, {"prior": 64, "decoder": 3}),
    ({"prior_num_inference_steps": 2, "num_inference_steps": 1}, {"prior": 2, "decoder": 1}),
])  # fmt: skip
def test_every_step_asks_a_network_once_guided_or_not(pipe, calls, options, expected):
    draw(pipe, **options)
    assert calls == expected


def test_guidance_of_several_prompts_equals_guidance_of_each_alone(pipe):
    prompts = ["a red circle", "a small blue square at the top left on a white background"]
    z_image = torch.nn.functional.normalize(torch.randn(2, 16), dim=1)
    options = {"num_inference_steps": 1, "guidance_scale": 3.0}
    both = pipe(prompts, z_image=z_image, generator=noise(0), **options).tensor
    start = torch.randn(2, 3, 16, 16, generator=noise(0))
    t = torch.tensor([pipe.decoder_diffusion.num_timesteps - 1])
    for i in range(2):
        alone = pipe.encode(prompts[i : i + 1])
        told = (start[i : i + 1], t, z_image[i : i + 1], alone.text_states, alone.mask)
        with autocast(pipe.device):
            seen, hidden = (pipe.decoder(*told, *[torch.tensor([h])] * 2).float() for h in (False, True))
        expected = (hidden + 3.0 * (seen - hidden)).clamp(-1, 1)
        torch.testing.assert_close(both[i : i + 1], expected, atol=0.01, rtol=0)


def test_guidance_and_steps_change_the_picture(pipe):
    variants = [{}, {"guidance_scale": 1.0}, {"prior_guidance_scale": 3.0}, {"num_inference_steps": 4}]
    assert len({draw(pipe, **options).tensor.numpy().tobytes() for options in variants}) == len(variants)


def test_the_film_strip_ends_in_the_picture(pipe):
    out = draw(pipe, num_images_per_prompt=2, num_inference_steps=4, return_steps=True)
    assert [tuple(step.shape) for step in out.steps] == [(2, 3, 16, 16)] * 4
    assert torch.equal(out.steps[-1], out.tensor)
    assert not torch.equal(out.steps[0], out.tensor)


def test_the_better_of_two_candidates_is_taken(pipe):
    similarities = []
    for seed in range(100):
        prompts = pipe.encode(["a red circle"])
        one, two = (pipe.sample_prior(prompts, 1, generator=noise(seed), num_candidates=n) for n in (1, 2))
        similarities.append([(z @ prompts.z_text.T).item() for z in (one, two)])
    assert all(abs(two - one) < 1e-6 or two > one + CANDIDATE_SLACK for one, two in similarities)
    assert 3 < sum(two > one + CANDIDATE_SLACK for one, two in similarities) < len(similarities) - 3


def test_candidates_are_compared_with_their_own_caption(pipe):
    prompts = pipe.encode(["a red circle", "a blue square", "a green ring on a white background"])
    tried = pipe.sample_prior(prompts.repeat(2), 2, generator=noise(), num_candidates=1).unflatten(0, (3, 2))
    best = pipe.sample_prior(prompts, 2, generator=noise())
    for row in range(3):
        near = tried[row] @ prompts.z_text[row]
        taken = tried[row, int(near[1] > near[0] + CANDIDATE_SLACK)]
        torch.testing.assert_close(best[row], taken, atol=1e-5, rtol=1e-4)


REFUSED = {
    "an unknown word": ({"prompt": "a red dog"}, '"dog".*known words'),
    "one unknown word among several prompts": ({"prompt": [PROMPT, "a rde circle"]}, '"rde".*mean "red"'),
    "an empty prompt": ({"prompt": ""}, "prompt is empty"),
    "a blank prompt": ({"prompt": " . , "}, "prompt is empty"),
    "an empty prompt among several": ({"prompt": [PROMPT, ""]}, "prompt is empty"),
    "no prompts": ({"prompt": []}, "prompt is empty"),
    "too many words": ({"prompt": "red " * 20}, "20 words"),
    "no pictures": ({"num_images_per_prompt": 0}, "0 pictures.*1 or more"),
    "fewer than no pictures": ({"num_images_per_prompt": -2}, "-2 pictures.*1 or more"),
    "half a picture": ({"num_images_per_prompt": 1.5}, "1.5 pictures.*whole number"),
    "words that are no prompt": ({"prompt": "of of of"}, "names one thing where it announces two|names no thing"),
    "guidance that is no number": ({"guidance_scale": "2"}, "guidance_scale is '2'"),
    "a z_image that is not finite": ({"z_image": torch.full((1, 16), float("nan"))}, "not finite"),
    "no steps": ({"num_inference_steps": 0}, "^0 sampling steps.*1 to 1000"),
    "negative steps": ({"num_inference_steps": -5}, "-5 sampling steps"),
    "too many steps": ({"num_inference_steps": 1001}, "1001 sampling steps"),
    "half a step": ({"num_inference_steps": 1.5}, "1.5 sampling steps"),
    "no steps of the prior": ({"prior_num_inference_steps": 0}, "^0 sampling steps.*1 to 1000"),
    "guidance nan": ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
    "guidance inf": ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
    "prior guidance nan": ({"prior_guidance_scale": float("nan")}, "guidance_scale is nan"),
    "prior guidance inf": ({"prior_guidance_scale": float("-inf")}, "guidance_scale is -inf"),
    "an unknown sampler": ({"sampler": "euler"}, '"euler" is no sampler; choose one of ddpm, ddim, dpm'),
    "a z_image of another width": ({"z_image": torch.ones(1, 8)}, r"z_image has shape \(1, 8\); \(1, 16\)"),
    "too few z_images": ({"z_image": torch.ones(1, 16), "num_images_per_prompt": 2}, r"\(1, 16\); \(2, 16\)"),
    "a z_image without a batch": ({"z_image": torch.ones(16)}, r"\(16,\); \(1, 16\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused_and_nothing_is_drawn(pipe, calls, name):
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        draw(pipe, **options)
    assert calls["decoder"] == 0


def test_who_has_learned_one_thing_refuses_two(pipe, calls, monkeypatch):
    monkeypatch.setattr(pipe, "two_things", False)
    with pytest.raises(ValueError, match=r"a red circle above a ring.* names two things.* name one"):
        draw(pipe, ["a red circle", "a red circle above a ring"])
    assert calls["decoder"] == calls["prior"] == 0
    assert len(draw(pipe, "a red circle").images) == 1


def test_loading_touches_no_global_random_numbers(micro_run):
    before = torch.random.get_rng_state()
    MiniDalle.from_pretrained(micro_run)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_loaded_models_are_ready_to_use_and_not_to_train(pipe):
    for model in (pipe.clip, pipe.prior, pipe.decoder):
        assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_a_decoder_of_another_clip_is_refused(micro_run, tmp_path):
    folder = shutil.copytree(micro_run, tmp_path / "mixed")
    save_model(folder, CLIP(MICRO.clip), {})
    with pytest.raises(CheckpointError, match=r"prior in .*mixed was trained with another CLIP .*: train it anew"):
        MiniDalle.from_pretrained(folder)
    folder = shutil.copytree(micro_run, tmp_path / "half")
    clip = CLIP(MICRO.clip)
    sha = save_model(folder, clip, {})
    save_model(folder, DiffusionPrior(MICRO.prior), {"clip": sha})
    with pytest.raises(CheckpointError, match=r"decoder in .*half was trained with another CLIP"):
        MiniDalle.from_pretrained(folder)


def test_a_stack_knows_whether_it_was_trained_on_two_things(micro_run, tmp_path):
    assert MiniDalle.from_pretrained(micro_run).two_things
    for meta, expected in (({"two_things": 0.0}, False), ({"two_things": 0.5}, True), ({}, True)):
        sha = save_model(tmp_path, CLIP(MICRO.clip), meta)
        save_model(tmp_path, DiffusionPrior(MICRO.prior), {"clip": sha})
        save_model(tmp_path, Decoder(MICRO.decoder), {"clip": sha})
        assert MiniDalle.from_pretrained(tmp_path).two_things is expected


@pytest.mark.parametrize("kind", ["clip", "prior", "decoder"])
def test_a_missing_piece_is_named(micro_run, tmp_path, kind):
    folder = shutil.copytree(micro_run, tmp_path / "run")
    (folder / f"{kind}.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"{kind}\.safetensors does not exist"):
        MiniDalle.from_pretrained(folder)


@pytest.mark.parametrize("meta", [
    {},
    {"config": None},
    {"config": {"width": 3}},
    {"config": checkpoint.config_to_dict(MICRO.clip) | {"width": 32}},
    {"config": checkpoint.config_to_dict(MICRO.clip) | {"width": "wide"}},
])  # fmt: skip
def test_a_file_that_does_not_fit_the_package_is_refused_in_one_sentence(tmp_path, meta):
    checkpoint.save(tmp_path / "clip.safetensors", "clip", CLIP(MICRO.clip).state_dict(), meta)
    with pytest.raises(CheckpointError, match=r"does not fit this package's clip \(.*\): train it again\.$") as caught:
        load_model(CLIP, tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_are_found_by_name_or_folder_and_the_names_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHIPPED", (tmp_path / "none", tmp_path / "shipped"))
    for name in ("tiny", "small"):
        (tmp_path / "shipped" / name).mkdir(parents=True)
    assert find_folder("tiny") == tmp_path / "shipped" / "tiny"
    assert find_folder(tmp_path) == tmp_path
    with pytest.raises(CheckpointError, match=r'"huge" is neither .* \(small, tiny\): train with "minidalle train"'):
        MiniDalle.from_pretrained("huge")
    monkeypatch.setattr(checkpoint, "SHIPPED", ())
    with pytest.raises(CheckpointError, match=r"\(none\)"):
        MiniDalle.from_pretrained("tiny")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(micro_run):
    with pytest.raises(ValueError, match=r'device "cuda" was asked for and is not there; found here: .*cpu'):
        MiniDalle.from_pretrained(micro_run, "cuda")
    with pytest.raises(ValueError, match='"tpu" is no device'):
        MiniDalle.from_pretrained(micro_run, "tpu")
