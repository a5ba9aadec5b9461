"""The whole system: the same noise gives the same pictures, and what cannot be drawn is refused in a sentence."""

import random
import shutil

import pytest
import torch
from conftest import MICRO

from minidalle import checkpoint, pipeline
from minidalle.checkpoint import CheckpointError, config_to_dict, find_folder, load_model, save_model
from minidalle.clip import CLIP
from minidalle.data.images import from_pil
from minidalle.decoder import Decoder
from minidalle.device import autocast
from minidalle.diffusion import DiffusionConfig
from minidalle.pipeline import CANDIDATE_MARGIN, UPSAMPLER_STEPS, MiniDalle
from minidalle.prior import DiffusionPrior
from minidalle.samplers import SAMPLERS, Step
from minidalle.upsampler import Upsampler
from minidalle.world import oracle
from minidalle.world.captions import TOKENIZER, describe, matches, write
from minidalle.world.scenes import draw_scene

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


def test_several_prompts_and_several_pictures_of_each_come_in_order(pipe, monkeypatch):
    """First all pictures of the first prompt: A A A B B B, for the prior as for the decoder."""
    prompts, seen = ["a red circle", "a small blue square at the top left"], []
    for name in ("sample_prior", "decode"):
        method = getattr(pipe, name)
        monkeypatch.setattr(
            pipe, name, lambda text, *args, method=method: seen.append(text.z_text) or method(text, *args)
        )
    out = draw(pipe, prompts, num_images_per_prompt=3)
    assert len(out.images) == 6 and len(out.z_image) == 6 and out.captions == prompts
    assert len({picture.tobytes() for picture in out.images}) == 6
    expected = pipe.encode(prompts).z_text[[0, 0, 0, 1, 1, 1]]
    assert len(seen) == 2 and all(torch.equal(z_text, expected) for z_text in seen)


def test_a_prompt_is_drawn_alike_alone_and_beside_a_longer_one(pipe):
    prompts = ["a red circle", "on a grey background a large pink ring to the right of a small green cross"]
    z_image = torch.nn.functional.normalize(torch.randn(2, 16), dim=1)
    alone, beside = pipe.encode(prompts[:1]), pipe.encode(prompts)
    torch.testing.assert_close(alone.z_text, beside.z_text[:1])
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([500, 500])
    both = pipe.decoder(x, t, z_image, beside)
    one = pipe.decoder(x[:1], t[:1], z_image[:1], alone)
    torch.testing.assert_close(one, both[:1], atol=1e-4, rtol=1e-4)


def test_a_given_z_image_is_drawn_in_place_of_the_priors(pipe, calls):
    z_image = torch.nn.functional.normalize(torch.randn(2, 16), dim=1)
    out = draw(pipe, z_image=z_image, num_images_per_prompt=2)
    assert torch.equal(out.z_image, z_image)
    assert calls["prior"] == 0
    assert not torch.equal(draw(pipe, z_image=-z_image, num_images_per_prompt=2).tensor, out.tensor)
    assert torch.equal(draw(pipe, z_image=z_image, num_images_per_prompt=2).tensor, out.tensor)


@pytest.mark.parametrize(("options", "expected"), [
    ({}, {"prior": 32, "decoder": 3}),
    ({"guidance_scale": 1.0, "prior_guidance_scale": 1.5}, {"prior": 32, "decoder": 3}),
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
        given = (start[i : i + 1], t, z_image[i : i + 1], alone)
        with autocast(pipe.device):
            seen, hidden = (pipe.decoder(*given, *[torch.tensor([h])] * 2).float() for h in (False, True))
        expected = (hidden + 3.0 * (seen - hidden)).clamp(-1, 1)
        torch.testing.assert_close(both[i : i + 1], expected, atol=0.01, rtol=0)


def test_guidance_and_steps_change_the_picture(pipe):
    variants = [{}, {"guidance_scale": 1.0}, {"prior_guidance_scale": 3.0}, {"num_inference_steps": 4}]
    assert len({draw(pipe, **options).tensor.numpy().tobytes() for options in variants}) == len(variants)


def test_the_film_strip_shows_the_guesses_and_ends_in_the_picture(pipe, monkeypatch):
    out = draw(pipe, num_images_per_prompt=2, num_inference_steps=4, return_steps=True)
    assert [tuple(step.shape) for step in out.steps] == [(2, 3, 16, 16)] * 4
    assert torch.equal(out.steps[-1], out.tensor)
    assert not torch.equal(out.steps[0], out.tensor)
    assert draw(pipe).steps == []
    steps = [Step(n, torch.full((1, 3, 16, 16), 0.1 * n), torch.full((1, 3, 16, 16), -0.1 * n)) for n in range(3)]
    monkeypatch.setitem(SAMPLERS, "dpm", lambda *args, **options: iter(steps))
    strip = draw(pipe, return_steps=True).steps
    assert all(torch.equal(shown, step.pred_x_start) for shown, step in zip(strip, steps, strict=True))


def test_a_picture_is_where_the_last_step_ended_and_never_beyond_the_range(pipe, monkeypatch):
    ends = [Step(1, torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)),
            Step(0, torch.zeros(1, 3, 16, 16), torch.linspace(-3, 3, 768).view(1, 3, 16, 16))]  # fmt: skip
    monkeypatch.setitem(SAMPLERS, "dpm", lambda *args, **options: iter(ends))
    assert torch.equal(draw(pipe).tensor, ends[-1].x_prev.clamp(-1, 1))


def test_each_sampler_draws_a_picture_of_its_own(pipe):
    pictures = [draw(pipe, sampler=sampler).tensor for sampler in SAMPLERS]
    assert len({picture.numpy().tobytes() for picture in pictures}) == len(SAMPLERS) == 3


def test_the_prior_is_sampled_with_fresh_noise_and_the_upsampler_without(pipe, monkeypatch):
    asked = []
    for name, sampler in tuple(SAMPLERS.items()):

        def spy(diffusion, model, x_t, steps, name=name, sampler=sampler, **options):
            asked.append((name, tuple(x_t.shape), steps, options.get("clip_x_start", True)))
            return sampler(diffusion, model, x_t, steps, **options)

        monkeypatch.setitem(SAMPLERS, name, spy)
    pipe.upsamplers = [Upsampler(MICRO.models["upsampler"])]
    draw(pipe, upsample=True, prior_num_inference_steps=5)
    assert asked == [
        ("ddpm", (1, 2, 16), 5, False),
        ("dpm", (1, 3, 16, 16), 3, True),
        ("ddim", (1, 3, 32, 32), UPSAMPLER_STEPS, True),
    ]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_picture_k_of_a_batch_is_the_picture_of_its_generator_alone(pipe, sampler):
    prompts = [PROMPT, "on a grey background a large pink ring to the right of a small green cross"]
    pipe.upsamplers = [Upsampler(MICRO.models["upsampler"])]
    options = {"sampler": sampler, "upsample": True}
    out = draw(pipe, prompts, num_images_per_prompt=2, generator=[noise(seed) for seed in range(4)], **options)
    for k in range(4):
        for generator in (noise(k), [noise(k)]):
            alone = draw(pipe, prompts[k // 2], generator=generator, **options)
            torch.testing.assert_close(alone.tensor[0], out.tensor[k], atol=1e-3, rtol=0)
            torch.testing.assert_close(alone.z_image[0], out.z_image[k], atol=1e-4, rtol=0)


def test_a_prompt_is_brought_into_words_of_training(pipe):
    typed, usual = "Please draw a BIG violet doughnut in the top-left corner!", "a large purple ring at the top left"
    out, expected = draw(pipe, typed), draw(pipe, usual)
    assert out.captions == expected.captions == [usual]
    assert torch.equal(out.tensor, expected.tensor)
    synonym = draw(pipe, "a big purple donut at the top left", rephrase=False)  # every word is known
    assert synonym.captions == ["a big purple donut at the top left"]
    assert not torch.equal(synonym.z_image, expected.z_image)
    with pytest.raises(ValueError, match='Unknown in the prompt: "please"'):
        draw(pipe, typed, rephrase=False)


def test_without_a_language_prompts_are_taken_as_they_are(pipe):
    bare = MiniDalle(pipe.clip, pipe.prior, pipe.decoder, pipe.tokenizer)
    assert bare.captions(["a big circle"]) == ["a big circle"] and bare.world == {}
    assert draw(bare, "a big circle").captions == ["a big circle"]


@pytest.mark.parametrize("margin", [0.0, 0.005])
def test_the_better_of_two_candidates_is_taken(pipe, margin):
    similarities, text = [], pipe.encode(["a red circle"])
    for seed in range(100):
        drawn = [pipe.sample_prior(text, 1, num_candidates=n, generator=noise(seed), margin=margin) for n in (1, 2)]
        similarities.append([(z @ text.z_text.T).item() for z in drawn])
    assert all(abs(two - one) < 1e-6 or two > one + margin for one, two in similarities)
    assert 3 < sum(two > one + margin for one, two in similarities) < len(similarities) - 3


def test_candidates_that_are_about_as_near_count_as_equal_when_nothing_else_is_asked(pipe, monkeypatch):
    margins = []
    monkeypatch.setattr(pipeline, "choose_candidate", lambda z, z_text, margin: margins.append(margin) or z[:, 0])
    draw(pipe)
    pipe.sample_prior(pipe.encode([PROMPT]), 2, margin=0.0)
    assert margins == [CANDIDATE_MARGIN, 0.0] and CANDIDATE_MARGIN > 0


def test_candidates_are_compared_with_their_own_caption(pipe):
    text = pipe.encode(["a red circle", "a blue square", "a green ring on a white background"])
    tried = pipe.sample_prior(text.repeat(2), 2, generator=noise(), num_candidates=1).unflatten(0, (3, 2))
    best = pipe.sample_prior(text, 2, generator=noise(), margin=0.0)
    near = (tried * text.z_text[:, None]).sum(2)  # (captions, candidates)
    taken = torch.stack([tried[row, near[row].argmax()] for row in range(3)])
    torch.testing.assert_close(best, taken, atol=1e-5, rtol=1e-4)


NONSENSE = torch.ones(1, 16)
REFUSED = {
    "an unknown word": ({"prompt": "a red dog"}, '"dog" is not understood in "a red dog"'),
    "one unknown word among several prompts": (
        {"prompt": [PROMPT, "a rde circle"]},
        '"rde" is not understood in "a rde circle"',
    ),
    "an empty prompt": ({"prompt": ""}, "prompt is empty"),
    "a blank prompt": ({"prompt": " . , "}, "prompt is empty"),
    "an empty prompt among several": ({"prompt": [PROMPT, ""]}, "prompt is empty"),
    "no prompts": ({"prompt": []}, "The prompt is an empty list"),
    "a number for a prompt": ({"prompt": 3}, "The prompt is of type int; a text or a list of texts"),
    "a number among prompts": ({"prompt": [PROMPT, 3]}, "The prompt number 1 is of type int"),
    "too many words": ({"prompt": "red " * 20, "rephrase": False}, "20 words"),
    "too many letters": ({"prompt": "a red circle " * 30}, "characters; at most 300"),
    "no pictures": ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0; a whole number from 1"),
    "fewer than no pictures": ({"num_images_per_prompt": -2}, "num_images_per_prompt is -2"),
    "half a picture": ({"num_images_per_prompt": 1.5}, "num_images_per_prompt is 1.5"),
    "a million pictures": ({"num_images_per_prompt": 10**6}, "is 1000000; a whole number from 1 to 1024 was"),
    "a million prompts": ({"prompt": ["a ring"] * 2000}, "number of prompts is 2000; a whole number from 1 to 1024"),
    "too few generators": ({"generator": [noise()], "num_images_per_prompt": 2}, "1 generators and 2 pictures"),
    "words that are no prompt": ({"prompt": "of of of"}, "names no object"),
    "guidance that is no number": ({"guidance_scale": "2"}, "guidance_scale is '2'"),
    "a z_image that is not finite": ({"z_image": NONSENSE * float("nan")}, "not finite"),
    "no steps": ({"num_inference_steps": 0}, "number of sampling steps is 0; .* 1 to 1000"),
    "negative steps": ({"num_inference_steps": -5}, "number of sampling steps is -5"),
    "too many steps": ({"num_inference_steps": 1001}, "number of sampling steps is 1001"),
    "half a step": ({"num_inference_steps": 1.5}, "number of sampling steps is 1.5"),
    "no steps of the prior": ({"prior_num_inference_steps": 0}, "number of sampling steps is 0"),
    "guidance nan": ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
    "guidance inf": ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
    "prior guidance nan": ({"prior_guidance_scale": float("nan")}, "guidance_scale is nan"),
    "prior guidance inf": ({"prior_guidance_scale": float("-inf")}, "guidance_scale is -inf"),
    "an unknown sampler": ({"sampler": "euler"}, '"euler" is no sampler; choose one of ddpm, ddim, dpm'),
    "a z_image of another width": ({"z_image": torch.ones(1, 8)}, r"z_image has shape \(1, 8\); \(1, 16\)"),
    "too few z_images": ({"z_image": NONSENSE, "num_images_per_prompt": 2}, r"\(1, 16\); \(2, 16\)"),
    "a z_image without a batch": ({"z_image": torch.ones(16)}, r"\(16,\); \(1, 16\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused_and_nothing_is_drawn(pipe, calls, name):
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        draw(pipe, **options)
    assert calls["decoder"] == 0


def test_a_picture_that_is_not_finite_is_refused(pipe):
    pipe.decoder.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="A picture holds values that are not finite"):
        draw(pipe)


def stack(folder, worlds: dict[str, dict | None]) -> MiniDalle:
    """Save three models, each with what it says of its world, and load them."""
    diffusion = {"diffusion": config_to_dict(DiffusionConfig())}
    header = {"tokenizer": TOKENIZER.to_dict(), "world": worlds["clip"]}
    sha = save_model(folder, CLIP(MICRO.models["clip"]), header)
    for model in (DiffusionPrior(MICRO.models["prior"]), Decoder(MICRO.models["decoder"])):
        save_model(folder, model, {"clip": sha, "world": worlds[model.kind], **diffusion})
    return MiniDalle.from_pretrained(folder, "cpu")


@pytest.mark.parametrize("kind", ["clip", "prior", "decoder"])
def test_a_stack_draws_two_objects_only_if_all_of_it_has_learned_to(tmp_path, kind):
    two, one = ({"name": "scenes", "two_objects": share} for share in (0.5, 0.0))
    pipe = stack(tmp_path, dict.fromkeys(("clip", "prior", "decoder"), two))
    assert len(draw(pipe, PROMPT).images) == 1 and pipe.world["two_objects"] == 0.5
    pipe = stack(tmp_path, {**dict.fromkeys(("clip", "prior", "decoder"), two), kind: one})
    with pytest.raises(ValueError, match=r"a red circle above a ring.* names two objects.* name one"):
        draw(pipe, ["a red circle", "a red circle above a ring"])
    assert len(draw(pipe, "a red circle").images) == 1


def test_a_stack_of_a_world_without_a_grammar_takes_prompts_as_they_are(tmp_path):
    world = {"name": "minerals"}
    pipe = stack(tmp_path, dict.fromkeys(("clip", "prior", "decoder"), world))
    assert pipe.rephrase is None and draw(pipe, "a big disc").captions == ["a big disc"]


@pytest.mark.parametrize("header", [
    {}, {"world": {}}, {"world": "scenes"}, {"world": {"name": "scenes"}, "tokenizer": {"kind": "bytes"}},
])  # fmt: skip
def test_a_stack_that_says_nothing_sensible_of_itself_is_refused(micro_run, tmp_path, header):
    folder = shutil.copytree(micro_run, tmp_path / "odd")
    sha = save_model(folder, CLIP(MICRO.models["clip"]), header)
    for kind, model in (("prior", DiffusionPrior), ("decoder", Decoder)):
        loaded, meta = load_model(model, folder)
        save_model(folder, loaded, {**meta, "clip": sha})
        assert kind == loaded.kind
    with pytest.raises(CheckpointError, match=r"What the models in .*odd say of themselves is damaged"):
        MiniDalle.from_pretrained(folder)


def test_loading_touches_no_global_random_numbers(micro_run):
    before = torch.random.get_rng_state()
    MiniDalle.from_pretrained(micro_run)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_loaded_models_are_ready_to_use_and_not_to_train(pipe):
    for model in (pipe.clip, pipe.prior, pipe.decoder):
        assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_a_decoder_of_another_clip_is_refused(micro_run, tmp_path):
    folder = shutil.copytree(micro_run, tmp_path / "mixed")
    save_model(folder, CLIP(MICRO.models["clip"]), {})
    with pytest.raises(CheckpointError, match=r"prior in .*mixed was trained with another CLIP .*: train it anew"):
        MiniDalle.from_pretrained(folder)
    folder = shutil.copytree(micro_run, tmp_path / "half")
    clip = CLIP(MICRO.models["clip"])
    sha = save_model(folder, clip, {})
    save_model(folder, DiffusionPrior(MICRO.models["prior"]), {"clip": sha})
    with pytest.raises(CheckpointError, match=r"decoder in .*half was trained with another CLIP"):
        MiniDalle.from_pretrained(folder)


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
    {"config": checkpoint.config_to_dict(MICRO.models["clip"]) | {"width": 32}},
    {"config": checkpoint.config_to_dict(MICRO.models["clip"]) | {"width": "wide"}},
])  # fmt: skip
def test_a_file_that_does_not_fit_the_package_is_refused_in_one_sentence(tmp_path, meta):
    checkpoint.save(tmp_path / "clip.safetensors", "clip", CLIP(MICRO.models["clip"]).state_dict(), meta)
    with pytest.raises(CheckpointError, match=r"does not fit this package's clip \(.*\): train it again\.$") as caught:
        load_model(CLIP, tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_are_found_by_name_or_folder_and_the_names_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHIPPED", (tmp_path / "none", tmp_path / "shipped"))
    for name in ("tiny", "small"):
        (tmp_path / "shipped" / name).mkdir(parents=True)
        (tmp_path / "shipped" / name / "clip.safetensors").touch()
    (tmp_path / "shipped" / "features").mkdir()  # no weights of a system
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


def test_the_shipped_weights_follow_prompts():
    """Twenty-four prompts and one seed."""
    pipe, rng = MiniDalle.from_pretrained("tiny", "cpu"), random.Random(5)
    said = [describe(draw_scene(rng, 0.5), rng, 0.5) for _ in range(24)]
    images = pipe([write(description, rng) for description in said], generator=noise()).tensor
    found = [all(matches(d, scene).values()) for d, scene in zip(said, oracle.read(images), strict=True)]
    assert sum(found) >= 20
