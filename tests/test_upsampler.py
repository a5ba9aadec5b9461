"""The upsampler: it starts as a plain enlargement, learns on aligned crops, and takes pictures of any size."""

import math
import random
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import MICRO
from PIL import Image
from torch import nn

from minidalle import checkpoint, losses
from minidalle.checkpoint import CheckpointError, config_to_dict, find_folder, load_model, save_model
from minidalle.cli import main
from minidalle.data.batches import World
from minidalle.degrade import DegradationConfig
from minidalle.diffusion import DiffusionConfig
from minidalle.losses import UpsamplerLossConfig, upsampler_loss
from minidalle.pipeline import MiniDalle
from minidalle.training.recipes import PRESETS, TINY
from minidalle.training.run import train
from minidalle.training.stages import step_generator
from minidalle.unet import UNet
from minidalle.upsampler import SecondUpsampler, Upsampler, UpsamplerConfig, blur, crop, enlarge, shrink
from minidalle.world import oracle
from minidalle.world.captions import describe, matches
from minidalle.world.render import render

CONFIG = MICRO.models["upsampler"]  # crops of 16 x 16 out of 32 x 32
B = 3


def awake(config: UpsamplerConfig = CONFIG) -> Upsampler:
    """Build an upsampler with weights in place of the zeros that it starts from."""
    upsampler = Upsampler(config)
    for p in upsampler.parameters():
        nn.init.normal_(p, std=0.2)
    return upsampler


def inputs(height: int = 16, width: int = 16) -> dict[str, torch.Tensor]:
    x_t, enlarged = torch.randn(2, B, 3, height, width)
    return {"x_t": x_t, "t": torch.tensor([0, 400, 999]), "enlarged": enlarged}


def stage(share: float = 0.5, batch_size: int = 64, seed: int = 0, model: nn.Module | None = None):
    """Give the loss, step by step, of an untrained upsampler, whose answer is the enlarged picture."""
    model, diffusion = model or Upsampler(CONFIG), DiffusionConfig().build()

    def loss_at(step: int) -> torch.Tensor:
        batch, config = World(32, seed).batch(step, batch_size), UpsamplerLossConfig(p_blur=share)
        return upsampler_loss(model, batch, step_generator(seed, step), config, diffusion, 16, 2)

    return loss_at


def watch(monkeypatch, name: str) -> list[tuple]:
    """Note with what the loss calls one of its helpers."""
    calls, helper = [], getattr(losses, name)
    monkeypatch.setattr(losses, name, lambda *args: calls.append(args) or helper(*args))
    return calls


def test_it_starts_as_the_enlarged_picture_and_learns_away_from_it():
    upsampler, given = Upsampler(CONFIG), inputs()
    assert torch.equal(upsampler(**given), given["enlarged"])
    (upsampler(**given) - 1).square().sum().backward()
    assert upsampler.unet.conv_out.weight.grad.any()


@pytest.mark.parametrize("name", ["x_t", "t", "enlarged"])
def test_it_looks_at_all_that_it_is_given(name):
    upsampler, given = awake(), inputs()
    changed = given | {name: given[name].flip(0)}
    added, other = upsampler(**given) - given["enlarged"], upsampler(**changed) - changed["enlarged"]
    assert (other - added)[0].abs().max() > 1e-3


@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 32), (64, 64), (16, 40), (4, 8)])
def test_it_takes_pictures_of_any_size(height, width):
    assert awake()(**inputs(height, width)).shape == (B, 3, height, width)


def test_a_size_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match=r"6 channels, height and width multiples of 4; found \(6, 16, 18\)"):
        awake()(**inputs(16, 18))
    with pytest.raises(ValueError, match=r"by 2 cannot make pictures of 44 pixels: choose a multiple of 8"):
        replace(CONFIG, image_size=44)


def test_convolutions_only_means_that_nothing_is_tied_to_a_place():
    """Far from the borders, a shifted picture gives the shifted answer: no map, no positions."""
    names = [name for name, _ in UNet(CONFIG.unet).named_parameters()]
    assert not [name for name in names if "attention" in name or "position" in name or "map" in name]
    upsampler, given = awake(), inputs(64, 64)
    moved = {name: value.roll((4, 8), (2, 3)) if value.ndim == 4 else value for name, value in given.items()}
    found, expected = upsampler(**moved), upsampler(**given).roll((4, 8), (2, 3))
    middle = slice(30, 42)  # what convolutions see from here ends before the borders
    difference = (found - expected).abs()
    assert difference[..., middle, middle].max() < 0.2 * difference.max()


def test_blur_is_a_gaussian():
    weight = [math.exp(-(d**2) / (2 * 0.6**2)) for d in (-1, 0, 1)]
    point = torch.zeros(1, 1, 5, 5)
    point[0, 0, 2, 2] = 1
    found = blur(point, 0.6)[0, 0, 1:4, 1:4]
    torch.testing.assert_close(found, torch.tensor([[a * b / sum(weight) ** 2 for a in weight] for b in weight]))


def test_blur_leaves_plain_pictures_and_channels_alone():
    plain = torch.randn(B, 3, 1, 1).expand(B, 3, 6, 6)
    torch.testing.assert_close(blur(plain, 0.6), plain)  # the corners too
    images = torch.randn(B, 3, 8, 8)
    torch.testing.assert_close(blur(images, 0.6)[:, :1], blur(images[:, :1], 0.6))
    torch.testing.assert_close(blur(images, 0.1), images)
    assert blur(images, 2.0).var() < blur(images, 0.6).var() < images.var()


def test_enlarge_keeps_straight_slopes_and_shrink_takes_means():
    slope = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 1, 8, 8)
    found = enlarge(slope, 2)
    assert found.shape == (1, 1, 16, 16)
    torch.testing.assert_close(found[0, 0, 5, 1:-1], torch.arange(0.25, 7, 0.5))
    images = torch.randn(B, 3, 4, 4)
    torch.testing.assert_close(shrink(F.interpolate(images, scale_factor=2.0), 2), images)
    scenes = World(64, 0).batch(0, 16).scenes
    assert (shrink(render(scenes, 64), 2) - render(scenes, 32)).square().mean() < 1e-3  # what a decoder learned


def test_crop_cuts_each_picture_where_it_is_asked_to():
    images, corners = torch.randn(B, 3, 8, 8), torch.tensor([[0, 0], [2, 4], [4, 1]])
    for picture, (y, x), found in zip(images, corners.tolist(), crop(images, corners, 4), strict=True):
        assert torch.equal(found, picture[:, y : y + 4, x : x + 4])


def test_large_and_small_picture_are_cut_at_the_same_place(monkeypatch):
    """Untrained, it loses what a plain enlargement loses on the crops; small pictures cut beside them lose far more."""
    calls = watch(monkeypatch, "crop")
    loss_at = stage(share=0.0)
    found, images = loss_at(0).item(), World(32, 0).batch(0, 64).images
    large, enlarged, corners = images, enlarge(shrink(images, 2), 2), calls[-1][1]
    expected, beside = (
        (crop(large, corners, 16) - crop(enlarged, (corners + moved).clamp(max=16), 16)).square().mean().item()
        for moved in (0, 2)
    )
    assert found == pytest.approx(expected, rel=1e-4) and beside > 2 * expected


def test_crops_lie_everywhere_on_whole_pixels_of_the_small_picture(monkeypatch):
    calls = watch(monkeypatch, "crop")
    loss_at = stage()
    for step in range(8):
        loss_at(step)
    corners = torch.cat([args[1] for args in calls])
    assert corners.unique().tolist() == list(range(0, 17, 2))
    assert not torch.equal(corners[:, 0], corners[:, 1])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_it_is_given_blurred_pictures_as_often_as_its_config_says(monkeypatch, share):
    calls = watch(monkeypatch, "enlarge")
    loss_at = stage(share)
    hits = []
    for step in range(8):
        loss_at(step)
        clean = shrink(World(32, 0).batch(step, 64).images, 2)
        given = calls[-1][0]
        for picture, plain, soft in zip(given, clean, blur(clean, 0.6), strict=True):
            assert torch.equal(picture, plain) or torch.equal(picture, soft)
            hits.append(not torch.equal(picture, plain))
    assert sum(hits) / 512 == pytest.approx(share, abs=4 * (share * (1 - share) / 512) ** 0.5)


def test_it_learns_the_sharp_picture_blurred_or_not(monkeypatch):
    """An upsampler that knows the large pictures has no loss."""
    calls = watch(monkeypatch, "crop")
    upsampler = Upsampler(CONFIG)
    upsampler.forward = lambda *_: crop(World(32, 0).batch(0, 64).images, calls[-1][1], 16)
    loss_at = stage(share=1.0, model=upsampler)
    assert loss_at(0) == 0
    assert loss_at(1) > 0.1


def test_a_step_and_a_seed_decide_the_loss():
    loss_at = stage()
    losses = [loss_at(step).item() for step in (0, 1, 2)]
    assert len(set(losses)) == 3
    torch.manual_seed(123)  # nothing may be drawn from the global source
    assert [loss_at(step).item() for step in (2, 0, 1)] == [losses[2], losses[0], losses[1]]
    assert stage(seed=1)(0).item() != losses[0]


def test_the_shipped_sizes_are_the_papers():
    config, loss = TINY.models["upsampler"], TINY.recipes["full"].stages["upsampler"].loss
    assert (loss.blur_sigma, config.unet.image_size**2 / config.image_size**2) == (0.6, 0.25)
    assert config.low_size == TINY.models["decoder"].unet.image_size and not config.unet.context_dim


def edges(images: torch.Tensor) -> torch.Tensor:
    """Mark the pixels around which not all is of one colour."""
    spread = F.max_pool2d(images, 3, 1, 1) + F.max_pool2d(-images, 3, 1, 1)
    return (spread.amax(1, keepdim=True) > 0.1).expand_as(images)


@pytest.mark.parametrize("two_objects", [0.0, 1.0])
def test_the_shipped_one_draws_edges_better_than_a_formula_and_changes_nothing_else(two_objects):
    batch = World(64, 4321, two_objects).batch(0, 16)
    pipe = MiniDalle.from_pretrained("tiny", "cpu")
    made = pipe.upsample(render(batch.scenes, 32), 4, torch.Generator().manual_seed(0))
    errors = {}
    for name, images in (("upsampler", made), ("bilinear", enlarge(render(batch.scenes, 32), 2))):
        errors[name] = (images - batch.images)[edges(batch.images)].square().mean()
    assert errors["upsampler"] < errors["bilinear"] / 4  # 6 dB
    for scene, found in zip(batch.scenes, oracle.read(made), strict=True):
        assert all(matches(describe(scene, random.Random(0), 1.0), found).values())


def test_the_shipped_one_is_what_its_command_makes():
    _, header = checkpoint.load(find_folder("tiny") / "upsampler.safetensors", "upsampler")
    recipe = TINY.recipes[header["recipe"]]
    assert (header["preset"], header["recipe"], header["seed"]) == ("tiny", "full", 0)
    how = recipe.stages["upsampler"]
    assert header["pictures"] == how.steps * how.batch_size
    assert header["world"] == {"name": "scenes", "two_objects": recipe.two_objects}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, micro_run):
    """Copy the micro run and train its upsampler beside the rest."""
    folder = shutil.copytree(micro_run, tmp_path_factory.mktemp("upsampled") / "run")
    train(MICRO, "quick", folder, ("upsampler",))
    return folder


def test_it_is_trained_alone_and_only_when_named(folder, micro_run, tmp_path):
    assert not (micro_run / "upsampler.safetensors").exists()
    train(MICRO, "quick", tmp_path, ("upsampler",))  # an empty folder: no clip is needed
    weights, header = checkpoint.load(tmp_path / "upsampler.safetensors", "upsampler")
    others, _ = checkpoint.load(folder / "upsampler.safetensors", "upsampler")
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert "clip" not in header and (header["preset"], header["pictures"]) == ("micro", 96)
    before = (tmp_path / "upsampler.safetensors").stat().st_mtime_ns
    train(MICRO, "quick", tmp_path, ("upsampler",), resume=True)
    assert (tmp_path / "upsampler.safetensors").stat().st_mtime_ns == before
    train(MICRO, "quick", tmp_path, ("upsampler",), seed=1)
    other = load_model(Upsampler, tmp_path)[0].state_dict()
    assert not torch.equal(other["unet.conv_in.weight"], weights["unet.conv_in.weight"])


def test_a_stack_with_an_upsampler_draws_twice_as_large_when_asked(folder):
    def draw(**options):
        generator = torch.Generator().manual_seed(0)
        return pipe(["a red circle"] * 2, num_inference_steps=2, generator=generator, **options)

    pipe = MiniDalle.from_pretrained(folder, "cpu")
    small, large, again = draw(), draw(upsample=True), draw(upsample=True)
    assert small.tensor.shape == (2, 3, 16, 16) and large.tensor.shape == (2, 3, 32, 32)
    assert [picture.size for picture in large.images] == [(32, 32)] * 2
    assert torch.equal(large.tensor, again.tensor) and torch.equal(large.z_image, small.z_image)
    assert large.tensor.min() >= -1 and large.tensor.max() <= 1
    plain = enlarge(small.tensor, 2)
    assert 0 < (large.tensor - plain).abs().mean() < (large.tensor - plain.flip(3)).abs().mean()
    (model,) = pipe.upsamplers
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_an_untrained_upsampler_enlarges(pipe):
    pipe.upsamplers = [Upsampler(CONFIG)]
    images = World(16, 0).batch(0, 4).images
    torch.testing.assert_close(pipe.upsample(images), enlarge(images, 2))
    with pytest.raises(ValueError, match="number of sampling steps is 0"):
        pipe.upsample(images, 0)


def test_without_an_upsampler_a_user_hears_of_it_before_anything_is_drawn(pipe, monkeypatch):
    monkeypatch.setattr(pipe, "encode", lambda captions: pytest.fail("something was drawn"))
    for ask in (lambda: pipe("a red circle", upsample=True), lambda: pipe.upsample(torch.zeros(1, 3, 16, 16))):
        with pytest.raises(ValueError, match=r'There is no upsampler here: .* "minidalle train upsampler"'):
            ask()


def test_a_damaged_upsampler_is_not_passed_over(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    path = broken / "upsampler.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"upsampler\.safetensors is truncated"):
        MiniDalle.from_pretrained(broken)
    save_model(broken, awake(), {"diffusion": config_to_dict(DiffusionConfig())})
    assert len(MiniDalle.from_pretrained(broken).upsamplers) == 1


def test_the_commands_train_it_and_draw_with_it(micro_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "micro", MICRO)
    folder = shutil.copytree(micro_run, tmp_path / "run")
    draw = ["generate", "a red circle", "--steps", "1", "--scale", "1", "--device", "cpu", "--upsample"]
    draw += ["--checkpoint", str(folder), "--out", str(tmp_path / "p.png")]
    assert main(draw) == 1
    assert "There is no upsampler here" in capsys.readouterr().err and not (tmp_path / "p.png").exists()
    assert main(["train", "upsampler", "--preset", "micro", "--out", str(folder), "--device", "cpu"]) == 0
    assert main(draw) == 0
    capsys.readouterr()
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size == (32, 32)
    assert main(["info", str(folder)]) == 0
    assert "upsampler: 0." in capsys.readouterr().out


def test_two_upsamplers_draw_one_after_the_other(pipe):
    first, second = (kind(MICRO.models[kind.kind]) for kind in (Upsampler, SecondUpsampler))
    pipe.upsamplers = [first]
    with pytest.raises(ValueError, match=r'upsample is 2, and .* here: 1: .* train upsampler_2"'):
        pipe("a red circle", num_inference_steps=1, upsample=2)
    pipe.upsamplers = [first, second]
    options = {"num_inference_steps": 1, "generator": torch.Generator().manual_seed(0)}
    assert pipe("a red circle", upsample=2, **options).tensor.shape == (1, 3, 64, 64)
    assert pipe("a red circle", upsample=True, **options).tensor.shape == (1, 3, 32, 32)
    for wrong in (3, -1, 1.5, "2"):
        with pytest.raises(ValueError, match="upsample is"):
            pipe("a red circle", upsample=wrong)


def test_the_second_upsampler_is_shown_spoilt_pictures():
    """Of one noise, degraded small pictures make another loss than plain ones, and 0 of them the same."""
    model, batch = SecondUpsampler(MICRO.models["upsampler_2"]).train(), World(64, 0).batch(0, 4)
    diffusion = DiffusionConfig().build()

    def loss(**config) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return upsampler_loss(model, batch, generator, UpsamplerLossConfig(p_blur=0.0, **config), diffusion, 16, 2)

    plain, spoilt = loss(), loss(p_degrade=1.0)
    assert torch.isfinite(spoilt) and spoilt != plain
    none = DegradationConfig(max_sigma=0.0, sizes=(1.0,), max_noise=0.0, min_quality=100.0)
    assert abs(loss(p_degrade=1.0, degradation=none) - loss(p_degrade=1e-9, degradation=none)) < 1e-3
