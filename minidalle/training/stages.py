"""The stages of a system: which model each trains, by which loss, and what it needs for that.

A new stage is one entry here (or in a file of rivals/), and a config and a recipe in the preset.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from minidalle import losses, parallel
from minidalle.ar_prior import AutoregressivePrior
from minidalle.checkpoint import load_model
from minidalle.clip import CLIP
from minidalle.data.batches import Batch, Collection, Scenes, Source
from minidalle.data.emoji import EmojiCollection, shipped_emojis
from minidalle.data.signs import Signs
from minidalle.decoder import Decoder
from minidalle.prior import DiffusionPrior
from minidalle.training.recipes import Preset, Recipe, StageRecipe
from minidalle.upsampler import SecondUpsampler, Upsampler, UpsamplerConfig

FITTED = 2048  # pictures from which the meaning of the autoregressive prior's buckets is found
LossAt = Callable[[nn.Module, int], torch.Tensor]  # (model, step) to the loss (), whose batch it draws itself


@dataclass(frozen=True)
class Stage:
    """One model of a system, and how it learns."""

    model_class: type[nn.Module]
    loss: Callable[..., torch.Tensor]  # (model, batch, generator, config, **frozen), see losses.py
    needs: tuple[str, ...] = ()  # stages whose trained models the loss takes, frozen
    sizes: Callable[[object], dict] = lambda config: {}  # what else the loss takes, of the model's config
    before: Callable[..., None] = lambda model, source, **needs: None  # what is done to a new model, before all steps
    sees_progress: bool = False  # whether the loss takes the share of the training that is done, `progress`, as well


@torch.no_grad()
def fit_buckets(model: AutoregressivePrior, source: Source, clip: CLIP) -> None:
    """Find what the buckets of a new autoregressive prior mean, from the first pictures of its training."""
    device = next(clip.parameters()).device
    found = [losses.embed(clip, source.batch(step, FITTED // 8).to(device)) for step in range(8)]
    model.fit(torch.cat([z_image for z_image, _ in found]), torch.cat([text.z_text for _, text in found]))


def upsampler_sizes(config: UpsamplerConfig) -> dict[str, int]:
    """Give what an upsampler's loss takes of its config."""
    return {"crop_size": config.unet.image_size, "factor": config.factor}


STAGES = {
    "clip": Stage(CLIP, losses.clip_loss),
    "prior": Stage(DiffusionPrior, losses.prior_loss, needs=("clip",)),
    "ar_prior": Stage(AutoregressivePrior, losses.ar_prior_loss, needs=("clip",), before=fit_buckets),
    "decoder": Stage(Decoder, losses.decoder_loss, needs=("clip",)),
    "upsampler": Stage(
        Upsampler,
        losses.upsampler_loss,
        sizes=upsampler_sizes,
    ),
    "upsampler_2": Stage(SecondUpsampler, losses.upsampler_loss, sizes=upsampler_sizes),
}
COLLECTIONS: dict[str, Callable[[Recipe], Collection]] = {
    "scenes": lambda recipe: Scenes(recipe.two_objects),
    "emoji": lambda recipe: EmojiCollection(shipped_emojis()),
    "signs": lambda recipe: Signs(),
}
KNOWN = dict(STAGES)  # and those of the rivals, once they are imported
STACK = ("clip", "prior", "decoder")  # what text to picture takes, in the order of training; the upsampler stands alone


def register(stages: dict[str, Stage]) -> None:
    """Make stages of further families known."""
    KNOWN.update(stages)


def load_needs(stage: str, folder: Path, device: torch.device) -> dict[str, nn.Module]:
    """Load the trained models that a stage learns from."""
    needs = KNOWN[stage].needs
    return {name: load_model(KNOWN[name].model_class, folder)[0].to(device).eval() for name in needs}


def frozen_parts(stage: str, preset: Preset, needs: dict[str, nn.Module], device: torch.device) -> dict:
    """Put together what a stage's loss takes beside model and batch: trained models, its process, sizes."""
    parts = KNOWN[stage].sizes(preset.models[stage]) | needs
    if stage == "clip":
        parts["gather"] = parallel.gather  # it alone compares the rows of a batch with one another
    if stage in preset.diffusion:
        parts["diffusion"] = preset.diffusion[stage].build().to(device)
    return parts


@dataclass(frozen=True)
class StageLoss:
    """The loss of a stage as the loop takes it: of a model, at a step."""

    stage: str
    source: Source
    recipe: StageRecipe
    frozen: dict  # what the loss takes beside model, batch, generator and recipe
    device: torch.device

    def __call__(self, model: nn.Module, step: int) -> torch.Tensor:
        """Draw the batch of a step, and give the model's loss of it: ()."""
        batch, generator = self.source.batch(step, self.recipe.batch_size), step_generator(self.source.seed, step)
        if (number := parallel.number()) > 1:
            batch = batch.part(parallel.rank(), number)
            generator = losses.Share(generator, parallel.rank(), number)
        return self.of(model, batch.to(self.device), generator, step)

    def of(self, model: nn.Module, batch: Batch, generator: torch.Generator, step: int | torch.Tensor) -> torch.Tensor:
        """Give the model's loss of a batch: (). Within a CUDA graph the step is a tensor."""
        stage = KNOWN[self.stage]
        more = {"progress": step / self.recipe.steps} if stage.sees_progress else {}
        return stage.loss(model, batch, generator, self.recipe.loss, **self.frozen, **more)


def collection_of(preset: Preset, recipe: Recipe) -> Collection:
    """Give the captioned pictures that a preset is made for."""
    return COLLECTIONS[preset.world](recipe)


def stage_source(stage: str, preset: Preset, recipe: Recipe, seed: int, collection: Collection | None = None) -> Source:
    """Make the source of a stage's batches; every stage has a seed of its own.

    Args:
        stage, preset, recipe, seed: of the training.
        collection: what the pictures are from; None: what the preset is made for.
    """
    how, size = recipe.stages[stage], getattr(preset.models[stage], "image_size", preset.models["clip"].image_size)
    collection = collection or collection_of(preset, recipe)
    return collection.source(size, derived_seed(stage, seed), how.hard_negatives, how.full_captions)


def derived_seed(*parts: object) -> int:
    """Derive a seed of its own for each use of a user's seed, of 63 bits whatever the size of the parts."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def noise_seed(seed: int, step: int) -> int:
    """Derive the seed of a step's noise from that of its batches."""
    return derived_seed("noise", seed, step)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Make the source of a step's noise; it lives on the CPU, so that every device trains on the same noise."""
    return torch.Generator().manual_seed(noise_seed(seed, step))
