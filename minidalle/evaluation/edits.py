"""How well edits do what they promise, on drawn scenes, read by the oracle.

Every figure is a Rate: what is edited is drawn with seeds of its own, and each prompt states all that the result is to
show, so that one wrong fact makes a miss.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from minidalle import edits
from minidalle.evaluation.gallery import picture_seeds
from minidalle.evaluation.metrics import Rate
from minidalle.evaluation.report import has_two
from minidalle.inpaint import inpaint
from minidalle.pipeline import MiniDalle
from minidalle.search import embed_images, nearest
from minidalle.world import oracle
from minidalle.world.captions import Description, SaidObject, describe, matches, write
from minidalle.world.render import render
from minidalle.world.scenes import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, Object, Scene, draw_scene, pick

CHUNK = 64  # pictures edited together, which bounds the memory
OPTIONS = {
    "color": tuple(COLORS), "shape": SHAPES, "size": tuple(SIZES), "place": tuple(PLACES),
    "background": tuple(BACKGROUNDS),
}  # fmt: skip
OF_OBJECT = ("shape", "color", "size")


def draw_scenes(n: int, two_objects: float, seed: str, split: str = "seen") -> list[Scene]:
    """Draw scenes to edit."""
    rng = random.Random(seed)
    return [draw_scene(rng, two_objects, split) for _ in range(n)]


def told(scene: Scene) -> Description:
    """Describe everything of a scene."""
    return describe(scene, random.Random(0), fullness=1.0)


def shows(descriptions: Sequence[Description], images: torch.Tensor) -> list[bool]:
    """Tell for each picture whether it shows all that its description states."""
    return [all(matches(d, scene).values()) for d, scene in zip(descriptions, oracle.read(images), strict=True)]


def in_chunks(n: int, edit: Callable[[slice, list[torch.Generator]], torch.Tensor], seed: str) -> torch.Tensor:
    """Edit n pictures some at a time; each has noise of its own."""
    seeds = [torch.Generator().manual_seed(s) for s in picture_seeds(n, seed)]
    return torch.cat([edit(slice(i, i + CHUNK), seeds[i : i + CHUNK]) for i in range(0, n, CHUNK)])


def rate(right: Sequence[bool]) -> Rate:
    """Count."""
    return Rate(sum(right), len(right))


def inversion(pipe: MiniDalle, n: int = 300, seed: str = "inversion", num_steps: int = edits.STEPS) -> dict:
    """Invert pictures and draw them again, with their own noise and with another.

    Returns: for both "same scene", and the mean absolute difference of a pixel, of 2 that are possible.
    """
    scenes = draw_scenes(n, 0.5 * has_two(pipe), seed)
    images = render(scenes, pipe.decoder.config.unet.image_size)

    def own(part: slice, _: list) -> torch.Tensor:
        return edits.reconstruct(pipe, edits.invert(pipe, images[part], num_steps), num_steps)

    def other(part: slice, noise: list) -> torch.Tensor:
        latent = edits.invert(pipe, images[part], 2)
        start = torch.cat([torch.randn(1, *images.shape[1:], generator=one) for one in noise]).to(pipe.device)
        return edits.reconstruct(pipe, replace(latent, noise=start), num_steps)

    found = {}
    for name, draw in {"own noise": own, "other noise": other}.items():
        drawn = in_chunks(n, draw, seed)
        same, error = shows([told(scene) for scene in scenes], drawn), float((drawn - images).abs().mean())
        found[name] = {"same scene": rate(same), "pixel error": round(error, 5)}
    return found


def named(scene: Scene) -> Description:
    """Describe shape and colour of a scene's objects, and how they stand to each other."""
    objects = tuple(SaidObject(shape=item.shape, color=item.color) for item in scene.objects)
    return Description(objects, relation=scene.relation)


def variation(
    pipe: MiniDalle, n: int = 300, seed: str = "variation", strength: float = 0.0, eta: float = 1.0
) -> dict[str, Rate | float]:
    """Vary pictures; above strength 0 the prior is conditioned on shapes and colours.

    Returns: how often shapes, colours and relation are "kept"; how often size, place and background are others, where
        they are; and the mean absolute difference of a pixel.
    """
    scenes = draw_scenes(n, 0.5 * has_two(pipe), seed)
    images = render(scenes, pipe.decoder.config.unet.image_size)

    def vary(part: slice, noise: list) -> torch.Tensor:
        prompts = [write(named(scene)) for scene in scenes[part]]
        return edits.variations(pipe, images[part], 1, eta, edits.STEPS, noise, strength, prompts)[:, 0]

    drawn = in_chunks(n, vary, seed)
    kept = shows([named(scene) for scene in scenes], drawn)
    found: dict[str, Rate | float] = {"kept": rate(kept)}
    pairs = [(told(a), b) for a, b, ok in zip(scenes, oracle.read(drawn), kept, strict=True) if ok]
    for attribute in ("size", "place", "background"):
        same = [matches(a, b)[attribute] for a, b in pairs if attribute in matches(a, b)]
        found[f"other {attribute}"] = rate([not one for one in same])
    return found | {"pixel difference": round(float((drawn - images).abs().mean()), 5)}


def text_diffs(pipe: MiniDalle, n: int = 60, seed: str = "text", share: float = edits.TEXT_SHARE) -> dict[str, Rate]:
    """Change one attribute of pictures of one object by the difference of two captions that state this attribute only.

    Returns: for each attribute, of n pictures, and for all: how often it is changed and everything else as it was.
    """
    found, everything = {}, []
    for attribute, options in OPTIONS.items():
        scenes, rng = draw_scenes(n, 0.0, f"{seed}/{attribute}"), random.Random(f"{seed}/{attribute}/new")
        images = render(scenes, pipe.decoder.config.unet.image_size)
        old = [fact(scene, attribute) for scene in scenes]
        new = [pick(rng, [option for option in options if option != one]) for one in old]
        before, after = ([write(stating(one, attribute)) for one in facts] for facts in (old, new))

        def change(part: slice, _: list, images=images, before=before, after=after) -> torch.Tensor:
            return edits.text_diff(pipe, images[part], before[part], after[part], share)

        asked = [changed(told(scene), attribute, one) for scene, one in zip(scenes, new, strict=True)]
        right = shows(asked, in_chunks(n, change, seed))
        found[attribute], everything = rate(right), everything + right
    return found | {"all": rate(everything)}


def fact(scene: Scene, attribute: str) -> str:
    """Look up an attribute of a scene of one object."""
    return getattr(scene.objects[0] if attribute in OF_OBJECT else scene, attribute)


def stating(value: str, attribute: str) -> Description:
    """Describe one attribute and nothing else."""
    return changed(Description((SaidObject(),)), attribute, value)


def changed(description: Description, attribute: str, value: str) -> Description:
    """Give a description of one object another value of an attribute."""
    if attribute in OF_OBJECT:
        return replace(description, objects=(replace(description.objects[0], **{attribute: value}),))
    return replace(description, **{attribute: value})


def painting(pipe: MiniDalle, n: int = 300, seed: str = "painting") -> dict[str, Rate]:
    """Paint a region of pictures anew, by a caption of everything that the result is to show.

    Of two objects one is replaced, in its half of the picture; of one, the middle half of the picture in both
    directions is painted, and the object, whose place is the centre, becomes another.

    Returns: how often the caption is "followed", and "kept", the share of pictures whose other pixels are as they were.
    """
    rng = random.Random(seed)
    pairs = [replaced(draw_scene(rng, 0.5 * has_two(pipe)), rng) for _ in range(n)]
    scenes, wanted, masks = (list(column) for column in zip(*pairs, strict=True))
    images, mask = render(scenes, pipe.decoder.config.unet.image_size), torch.stack(masks)
    asked = [told(scene) for scene in wanted]
    prompts = [write(description) for description in asked]

    def paint(part: slice, noise: list) -> torch.Tensor:
        return inpaint(pipe, images[part], mask[part], prompts[part], generator=noise)

    drawn = in_chunks(n, paint, seed)
    same = ((drawn == images) | mask[:, None]).flatten(1).all(1).tolist()
    return {"followed": rate(shows(asked, drawn)), "kept": rate(same)}


def replaced(scene: Scene, rng: random.Random, size: int = 32) -> tuple[Scene, Scene, torch.Tensor]:
    """Give a scene, one that differs from it in one object, and a mask of where that object is: (size, size)."""
    mask, half, quarter = torch.zeros(size, size, dtype=torch.bool), size // 2, size // 5
    which = int(rng.random() * len(scene.objects))
    if len(scene.objects) == 1:
        scene = replace(scene, objects=(replace(scene.objects[0], x=0.0, y=0.0),))
        mask[quarter:-quarter, quarter:-quarter] = True
    else:
        side = mask if scene.relation == "above" else mask.T
        side[half * which : half * (which + 1)] = True
    while (other := with_object(scene, which, rng)).split != "seen" or other == scene:
        pass
    return scene, other, mask


def with_object(scene: Scene, which: int, rng: random.Random) -> Scene:
    """Draw another object at the place of one of a scene's."""
    old, objects = scene.objects[which], list(scene.objects)
    objects[which] = Object(*(pick(rng, OPTIONS[attribute]) for attribute in OF_OBJECT), old.x, old.y)
    return replace(scene, objects=tuple(objects))


@torch.no_grad()
def searching(pipe: MiniDalle, n: int = 300, seed: str = "search", split: str = "held out") -> dict[str, Rate]:
    """Find pictures among n by the caption that says everything of them, and by another picture of the same scene.

    Scenes of the same facts occur more than once, so whatever fits is right.
    """
    scenes, rng = draw_scenes(n, 0.5 * has_two(pipe), seed, split), random.Random(f"{seed}/words")
    said, size = [told(scene) for scene in scenes], pipe.clip.config.image_size
    z_image = embed_images(pipe, render(scenes, size))
    moved = [replace(scene, objects=tuple(shifted(item, rng) for item in scene.objects)) for scene in scenes]
    queries = {
        "by caption": pipe.encode(pipe.captions([write(description, rng) for description in said])).z_text,
        "by picture": embed_images(pipe, render(moved, size)),
    }
    found = {}
    for name, asked in queries.items():
        best = [scenes[nearest(z_image, z, 1)[0].row] for z in asked]
        found[name] = rate([all(matches(d, scene).values()) for d, scene in zip(said, best, strict=True)])
    return found


def shifted(item: Object, rng: random.Random) -> Object:
    """Move an object by about half a pixel of 32."""
    return replace(item, x=item.x + 0.03 * (2 * rng.random() - 1), y=item.y + 0.03 * (2 * rng.random() - 1))


def composing(pipe: MiniDalle, n: int = 300, seed: str = "composing") -> dict[str, Rate]:
    """Draw from two captions, between which the facts of a scene are divided, and from the one that states all.

    Returns: how often both captions are followed, "composed" and in "one caption", of scenes of one object and of two.
    """
    found = {}
    for level, share in {"one object": 0.0, "two objects": 1.0}.items() if has_two(pipe) else [("one object", 0.0)]:
        rng = random.Random(f"{seed}/{level}")
        whole = [told(draw_scene(rng, share)) for _ in range(n)]
        halves = [divided(description, rng) for description in whole]

        def compose(part: slice, noise: list, halves=halves) -> torch.Tensor:
            prompts = [[write(description) for description in side] for side in zip(*halves[part], strict=True)]
            return edits.compose(pipe, prompts, len(noise), 8, generator=noise)

        def one_caption(part: slice, noise: list, whole=whole) -> torch.Tensor:
            return pipe([write(description) for description in whole[part]], generator=noise).tensor

        for name, draw in {"composed": compose, "one caption": one_caption}.items():
            found[f"{level}, {name}"] = rate(shows(whole, in_chunks(n, draw, f"{seed}/{level}")))
    return found


def divided(description: Description, rng: random.Random) -> tuple[Description, Description]:
    """Divide the facts of a description between two, none of which is empty; both state the relation."""
    while True:
        first, second = [], []
        for item in description.objects:
            taken = {name: rng.random() < 0.5 for name in OF_OBJECT}
            first.append(SaidObject(**{name: getattr(item, name) for name in OF_OBJECT if taken[name]}))
            second.append(SaidObject(**{name: getattr(item, name) for name in OF_OBJECT if not taken[name]}))
        parts = [{}, {}]
        for name in ("place", "background"):
            parts[rng.random() < 0.5][name] = getattr(description, name)
        made = [
            Description(tuple(objects), relation=description.relation, **more)
            for objects, more in zip((first, second), parts, strict=True)
        ]
        if all(one.num_facts > (description.relation is not None) for one in made):
            return made[0], made[1]


MEASURES = {
    "inversion": inversion, "variation": variation, "text diffs": text_diffs, "inpainting": painting,
    "search": searching, "composing": composing,
}  # fmt: skip
