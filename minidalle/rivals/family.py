"""What all rivals have in common: how a family is described, and how a trained one is loaded and asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from einops import repeat
from torch import nn

from minidalle.checkpoint import CheckpointError, config_from_dict, load_model
from minidalle.checks import check_noise, texts, whole_number
from minidalle.clip import CLIP
from minidalle.data.images import to_pil
from minidalle.device import pick_device
from minidalle.diffusion import DiffusionConfig, GaussianDiffusion
from minidalle.pipeline import LANGUAGES, MAX_PICTURES, MiniDalle, Output, Rephrase, find_language
from minidalle.samplers import Noise
from minidalle.tokenizer import Tokenizer
from minidalle.training.recipes import TINY, Preset, Recipe, StageRecipe, shortened
from minidalle.training.stages import Stage


@dataclass(frozen=True)
class Family:
    """A way from captions to pictures: what it trains, by which numbers, and how it draws."""

    name: str
    summary: str  # in one line, for people
    stages: dict[str, Stage]  # in the order of training; the last is called as the family, reads captions and draws
    models: dict[str, object]  # a config for each stage
    recipes: dict[str, dict[str, StageRecipe]]  # quick and full, each with all stages
    draw: Callable[..., torch.Tensor]  # (rival, tokens, mask, generator, **options) to pictures (B, 3, H, W)
    networks: Callable[[dict[str, nn.Module]], dict[str, nn.Module]]  # models to what is called to draw, by name
    options: dict[str, float] = field(default_factory=dict)  # what draw takes by choice, with its defaults
    diffusion: dict[str, DiffusionConfig] = field(default_factory=dict)  # the processes of the stages that have one
    teachers: tuple[str, ...] = ()  # stages that are needed to train, and not to draw

    @property
    def drawn(self) -> dict[str, Stage]:
        """Give the stages whose models it takes to draw."""
        return {kind: stage for kind, stage in self.stages.items() if kind not in self.teachers}

    def preset(self) -> Preset:
        """Make the preset that trains this family on the pictures and captions that tiny is trained on."""
        recipes = {name: Recipe(TINY.recipes[name].two_objects, stages) for name, stages in self.recipes.items()}
        recipes["smoke"] = shortened(recipes["quick"])
        return Preset(self.name, TINY.models | self.models, recipes, diffusion=self.diffusion)


class Rival:
    """A trained rival: it takes prompts as MiniDalle does.

    Args:
        family: what it is.
        models: a model for each of the family's stages, teachers left out.
        tokenizer: the one that they were trained with.
        device: where to compute; None: on the CPU.
        rephrase: brings a prompt into words that the models know; None: prompts are taken as they are.
        world: what the models say of the world they were trained on.
        diffusion: the processes that stages were trained for.
        clip: judges pictures where a family draws several to choose from; None: there is none.
    """

    upsamplers = ()  # it has none

    def __init__(
        self,
        family: Family,
        models: dict[str, nn.Module],
        tokenizer: Tokenizer,
        device: torch.device | None = None,
        rephrase: Rephrase | None = None,
        world: dict | None = None,
        diffusion: dict[str, GaussianDiffusion] | None = None,
        clip: CLIP | None = None,
    ):
        self.family, self.device = family, device or torch.device("cpu")
        self.models = {kind: model.to(self.device).eval() for kind, model in models.items()}
        self.clip = clip and clip.to(self.device).eval()
        self.diffusion = {kind: process.to(self.device) for kind, process in (diffusion or {}).items()}
        self.tokenizer, self.rephrase, self.world = tokenizer, rephrase, world or {}

    @classmethod
    def from_pretrained(cls, family: Family, folder: Path, device: str | None = None) -> "Rival":
        """Load a rival from the folder that it was trained in, with the CLIP beside it where there is one.

        Raises: CheckpointError: when a model is missing, damaged, or was not trained with the others.
        """
        loaded = {kind: load_model(stage.model_class, folder) for kind, stage in family.drawn.items()}
        headers = {kind: header for kind, (_, header) in loaded.items()}
        for kind, stage in family.drawn.items():
            for need in set(stage.needs) - set(family.teachers):
                if headers[kind].get(need) != headers[need]["sha256"]:
                    raise CheckpointError(
                        f"The {kind} in {folder} was trained with another {need} than the one beside it: "
                        f'train both anew by "minidalle train {family.name}".'
                    )
        try:
            words = next(header["tokenizer"] for header in headers.values() if "tokenizer" in header)
            tokenizer, world = Tokenizer.from_dict(words), headers[family.name]["world"]
            rephrase = find_language(world["name"])(world) if world["name"] in LANGUAGES else None
            processes = {
                kind: config_from_dict(DiffusionConfig, headers[kind]["diffusion"]).build() for kind in family.diffusion
            }
        except (KeyError, TypeError, ValueError, StopIteration) as error:
            raise CheckpointError(
                f"What the {family.name} in {folder} says of itself is damaged ({error!r:.80})."
            ) from error
        models = {kind: model for kind, (model, _) in loaded.items()}
        clip = models.get("clip")
        if clip is None and (folder / "clip.safetensors").exists():
            clip = load_clip(folder, words)
        return cls(family, models, tokenizer, pick_device(device), rephrase, world, processes, clip)

    @property
    def image_size(self) -> int:
        """Give the width of a picture, in pixels."""
        return self.models[self.family.name].config.image_size

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Give what is called to draw, by name."""
        return self.family.networks(self.models)

    def check_options(self, options: dict[str, object]) -> dict[str, object]:
        """Keep the options that were chosen.

        Raises: ValueError: on one that the family does not have.
        """
        chosen = {name: value for name, value in options.items() if value is not None}
        if not chosen.get("upsample", True):
            del chosen["upsample"]
        if unknown := [name for name in chosen if name not in self.family.options]:
            known = ", ".join(self.family.options) or "no options"
            raise ValueError(f"{self.family.name} has no {unknown[0]}: leave it out; {self.family.name} takes {known}.")
        return chosen

    captions = MiniDalle.captions  # prompts are understood, or refused, in the same way

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        num_images_per_prompt: int = 1,
        generator: Noise = None,
        rephrase: bool = True,
        **options,
    ) -> Output:
        """Draw pictures of prompts.

        Args:
            prompt, num_images_per_prompt, generator, rephrase: those of MiniDalle.
            options: of the family, such as guidance_scale; None stands for its default. No upsampling (0) is fine.

        Returns: pictures; z_image is empty, since a rival has none.
        Raises: ValueError: on a prompt that is not understood, an option that the family does not have, or a picture
            that is not finite.
        """
        options = self.check_options(options)
        prompts = texts(prompt, "The prompt")
        number = whole_number(num_images_per_prompt, "num_images_per_prompt", 1, MAX_PICTURES // len(prompts) or 1)
        whole_number(len(prompts), "The number of prompts", 1, MAX_PICTURES)
        check_noise(generator, number * len(prompts))
        captions = self.captions(prompts, rephrase)
        tokens, mask = (repeat(x.to(self.device), "b l -> (b n) l", n=number) for x in self.tokenizer.encode(captions))
        images = self.family.draw(self, tokens, mask, generator, **self.family.options | options)
        images = images.float().clamp(-1, 1).cpu()
        if not images.isfinite().all():
            raise ValueError("A picture holds values that are not finite: the weights or the settings are unusable.")
        return Output(to_pil(images), images, torch.empty(len(images), 0), captions, [])


def load_clip(folder: Path, tokenizer: dict) -> CLIP:
    """Load the CLIP beside a rival.

    Raises: CheckpointError: when it reads captions by another tokenizer.
    """
    clip, header = load_model(CLIP, folder)
    if header.get("tokenizer") != tokenizer:
        raise CheckpointError(
            f"The CLIP in {folder} reads other words than the rival beside it, and cannot judge its pictures: "
            "take it away, or train one there."
        )
    return clip
