"""The oracle: that it reads what is there, under noise and blur too, and says so when there is nothing to read."""

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from minidalle.world import oracle
from minidalle.world.render import as_range, coverage, render
from minidalle.world.scenes import BACKGROUNDS, COLORS, PLACES, SHAPES, SPLITS, Object, Scene, draw_scene

NUMBER = 600


def draw(number: int, seed: int = 0, **options) -> list[Scene]:
    rng = random.Random(seed)
    return [draw_scene(rng, **options) for _ in range(number)]


def facts(scene: Scene | None):
    if scene is None:
        return None
    objects = [(item.shape, item.color, item.size) for item in scene.objects]
    return objects, scene.background, scene.place, scene.relation


def add_noise(images: torch.Tensor, std: float = 0.1) -> torch.Tensor:
    return (images + std * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)


def blur(images: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(F.pad(images, [1] * 4, mode="replicate"), 3, stride=1)


def share_right(scenes: list[Scene], images: torch.Tensor) -> float:
    found = oracle.read(images)
    return sum(facts(a) == facts(b) for a, b in zip(scenes, found, strict=True)) / len(scenes)


def share_unread(images: torch.Tensor) -> float:
    return sum(scene is None for scene in oracle.read(images)) / len(images)


def blank(number: int, size: int = 32) -> torch.Tensor:
    return as_range(BACKGROUNDS)[torch.arange(number) % 3][:, :, None, None].repeat(1, 1, size, size)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("size", [32, 64])
def test_scenes_are_read_back(size, split):
    scenes = draw(NUMBER, seed=1, split=split)
    images = render(scenes, size)
    assert share_right(scenes, images) >= 0.995
    assert share_right(scenes, add_noise(images)) >= 0.97
    assert share_right(scenes, blur(images)) >= 0.995


@pytest.mark.parametrize("size", [33, 48, 100, 128, 256])
def test_scenes_of_other_sizes_are_read_back(size):
    scenes = draw(60, seed=2)
    assert share_right(scenes, render(scenes, size)) >= 0.995


@pytest.mark.parametrize("size", [16, 24])
def test_what_is_read_of_smaller_pictures_is_mostly_right(size):
    scenes = draw(200, seed=3)
    found = [(a, b) for a, b in zip(scenes, oracle.read(render(scenes, size)), strict=True) if b is not None]
    assert len(found) > 50
    assert sum(facts(a) == facts(b) for a, b in found) / len(found) > 0.93


@pytest.mark.parametrize("size", [32, 64])
def test_positions_are_right_within_half_a_pixel(size):
    scenes = draw(NUMBER, seed=4)
    for images in (render(scenes, size), add_noise(render(scenes, size))):
        for scene, found in zip(scenes, oracle.read(images), strict=True):
            for a, b in zip(scene.objects, found.objects if found else (), strict=bool(found)):
                assert max(abs(a.x - b.x), abs(a.y - b.y)) * size / 2 < 0.5


def test_a_picture_is_read_the_same_alone_and_among_others():
    images = add_noise(render(draw(300, seed=5), 32))
    together = oracle.read(images)
    for i in range(0, 300, 29):
        assert facts(oracle.read(images[i : i + 1])[0]) == facts(together[i])


def test_slightly_wrong_colors_positions_and_radii_are_read():
    scenes = draw(300, seed=6)
    images = render(scenes, 32)
    tint = (torch.rand(300, 3, 1, 1, generator=torch.Generator().manual_seed(0)) - 0.5) * (20 / 127.5)
    assert share_right(scenes, (images + tint).clamp(-1, 1)) >= 0.98
    axis = torch.linspace(-1, 1, 32) * 0.96  # 4 % larger, about the middle of the canvas
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).repeat(300, 1, 1, 1)
    warped = F.grid_sample(images, grid, align_corners=True)
    assert share_right(scenes, warped) >= 0.98


def test_noise_is_no_scene():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(200, 3, 32, 32, generator=generator) * 2 - 1
    assert share_unread(noise) >= 0.99
    assert share_unread((torch.randn(200, 3, 32, 32, generator=generator) * 0.5).clamp(-1, 1)) >= 0.99
    assert share_unread(F.interpolate(noise[:, :, :8, :8], 32, mode="bicubic").clamp(-1, 1)) >= 0.99


@pytest.mark.parametrize("size", [32, 64])
def test_an_empty_background_is_no_scene(size):
    assert share_unread(blank(90, size)) == 1
    assert share_unread(add_noise(blank(90, size))) == 1


def test_three_objects_are_no_scene():
    rng = random.Random(0)
    images = blank(300)
    for i in range(300):
        for x, y in rng.sample(list(PLACES.values()), 3):
            color = as_range(COLORS)[int(rng.random() * 8)][:, None, None]
            shape = SHAPES[int(rng.random() * 6)]
            alpha = coverage(shape, *torch.tensor([[x], [y], [0.204]]), 32)
            images[i] += alpha * (color - images[i])
    assert share_unread(images) >= 0.99
    assert share_unread(blur(images)) >= 0.99


def test_a_mean_of_two_scenes_is_no_scene():
    images = (render(draw(NUMBER, seed=7), 32) + render(draw(NUMBER, seed=8), 32)) / 2
    assert share_unread(images) >= 0.99


def test_an_object_of_two_colors_is_no_scene():
    scenes = draw(300, seed=9, two_objects=0.0)
    colors = list(COLORS)
    other = [colors[(colors.index(scene.objects[0].color) + 1 + i % 7) % 8] for i, scene in enumerate(scenes)]
    swapped = [replace(s, objects=(replace(s.objects[0], color=c),)) for s, c in zip(scenes, other, strict=True)]
    left = torch.arange(32) < torch.tensor([(s.objects[0].x + 1) * 16 for s in scenes])[:, None, None, None]
    assert share_unread(torch.where(left, render(scenes, 32), render(swapped, 32))) >= 0.99


def test_half_an_object_is_no_scene():
    scenes = draw(300, seed=10, two_objects=0.0)
    empty = torch.stack([as_range(BACKGROUNDS)[list(BACKGROUNDS).index(s.background)] for s in scenes])[
        :, :, None, None
    ]
    left = torch.arange(32) < torch.tensor([(s.objects[0].x + 1) * 16 for s in scenes])[:, None, None, None]
    assert share_unread(torch.where(left, render(scenes, 32), empty)) >= 0.93


def lone(x: float = 0.0, y: float = 0.0, radius: float = 0.4, shape: str = "circle") -> torch.Tensor:
    """Paint a blue object of any radius anywhere on black."""
    ground, color = as_range(BACKGROUNDS)[0][None, :, None, None], as_range(COLORS)[2][None, :, None, None]
    return ground + coverage(shape, *torch.tensor([[x], [y], [radius]]), 32)[:, None] * (color - ground)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_size_between_the_two_is_not_guessed(shape):
    assert [oracle.read(lone(radius=r, shape=shape))[0].objects[0].size for r in (0.24, 0.4)] == ["small", "large"]
    assert oracle.read(lone(radius=0.31, shape=shape)) == [None]


def test_a_place_between_two_is_not_guessed():
    assert [oracle.read(lone(x=x, radius=0.24))[0].place for x in (0.0, 0.12, 0.4, 0.52)] == ["center"] * 2 + [
        "right"
    ] * 2
    assert oracle.read(lone(x=0.26, radius=0.24)) == [None]
    assert oracle.read(lone(x=0.52, y=0.26, radius=0.24)) == [None]


def test_a_relation_on_the_diagonal_is_not_guessed():
    def pair(x: float, y: float) -> torch.Tensor:
        objects = Object("circle", "red", "small", -x, -y), Object("square", "blue", "small", x, y)
        return render([Scene(objects, "white")], 32)

    assert oracle.read(pair(0.1, 0.4))[0].relation == "above"
    assert oracle.read(pair(0.4, 0.1))[0].relation == "left of"
    assert oracle.read(pair(0.4, 0.4)) == [None]


def test_two_shapes_mixed_are_not_guessed():
    ground = lone(radius=0.24, shape="ring")
    assert oracle.read((ground + lone(radius=0.24, shape="circle")) / 2) == [None]


@pytest.mark.parametrize("color", [(90, 90, 90), (140, 110, 40), (245, 175, 45)])  # the last: half orange, half yellow
def test_a_color_of_no_name_is_not_guessed(color):
    picture = lone()
    alpha = coverage("circle", *torch.tensor([[0.0], [0.0], [0.4]]), 32)[:, None]
    picture = alpha * as_range({"any": color})[..., None, None] + (1 - alpha) * as_range(BACKGROUNDS)[:1, :, None, None]
    assert oracle.read(picture) == [None]


def test_a_background_of_no_name_is_not_guessed():
    alpha = coverage("circle", *torch.tensor([[0.0], [0.0], [0.4]]), 32)[:, None]
    found = [oracle.read(lone() + (1 - alpha) * lift)[0] for lift in (0.0, 0.1, 0.18, 0.4)]  # 0.4: nearly grey
    assert [scene and scene.background for scene in found] == ["black", "black", None, None]


def test_a_bite_or_a_stain_is_not_overlooked():
    scene = Scene((Object("square", "orange", "large", 0.0, 0.0),), "black")
    for color in (BACKGROUNDS["black"], COLORS["yellow"]):
        picture = render([scene], 32)
        assert oracle.read(picture)[0] is not None
        picture[:, :, 10:14, 14:18] = as_range({"any": color})[..., None, None]
        assert oracle.read(picture) == [None]


def test_no_pictures_give_no_scenes():
    assert oracle.read(torch.empty(0, 3, 32, 32)) == []


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 32, 32), r"shape \(3, 32, 32\).*\(B, 3, H, W\)"),
        (torch.zeros(1, 1, 32, 32), r"shape \(1, 1, 32, 32\)"),
        (torch.zeros(1, 3, 32, 48), r"shape \(1, 3, 32, 48\).*H = W"),
        (torch.zeros(1, 3, 15, 15), "16 to 256"),
        (torch.zeros(1, 3, 257, 257), "16 to 256"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.float64), "torch.float64.*torch.float32"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "torch.uint8.*torch.float32"),
        (torch.full((1, 3, 32, 32), 1.01), r"from 1.01 to 1.01.*\[-1, 1\]"),
        (torch.full((1, 3, 32, 32), -2.0), r"from -2 to -2.*\[-1, 1\]"),
        (torch.full((1, 3, 32, 32), float("nan")), "from nan to nan"),
    ],
)
def test_what_is_no_picture_is_refused(images, message):
    with pytest.raises(ValueError, match=message):
        oracle.read(images)


def test_a_tiny_overshoot_is_allowed():
    assert oracle.read(torch.full((1, 3, 32, 32), 1.0005)) == [None]


def test_one_bad_value_among_many_is_found():
    images = render(draw(4), 32)
    images[2, 1, 5, 5] = float("nan")
    with pytest.raises(ValueError, match="nan"):
        oracle.read(images)


def test_a_colour_is_named_only_where_it_is_near_and_clearly_the_nearest():
    named = as_range(COLORS)[None] - as_range(BACKGROUNDS)[:1]  # (1, 8, 3), contrasts with black
    orange, yellow = map(list(COLORS).index, ("orange", "yellow"))
    way = named[0, yellow] - named[0, orange]
    off = named[0, orange] + torch.tensor([0.0, 0.0, -0.3])  # no nearer to another colour, and too far from this one
    for mean, color, clear in (
        (named[0, orange], orange, True),
        (named[0, orange] + 0.2 * way, orange, True),
        (named[0, orange] + 0.37 * way, orange, False),  # near enough, and nearly half way to the other
        (named[0, orange], yellow, False),
        (off, orange, False),
    ):
        assert oracle.is_clear_color(mean[None], named, torch.tensor([color])).tolist() == [clear]


def test_refining_a_drawing_finds_positions_between_those_of_the_search():
    scenes = draw(200, seed=11)
    errors = [
        max(abs(a.x - b.x), abs(a.y - b.y)) * 16
        for scene, found in zip(scenes, oracle.read(render(scenes, 32)), strict=True)
        for a, b in zip(scene.objects, found.objects, strict=True)
    ]
    assert sum(errors) / len(errors) < 0.05 and max(errors) < 0.3  # pixels; the search alone goes in steps of 0.5
