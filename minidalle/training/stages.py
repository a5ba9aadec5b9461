"""The whole system: a caption becomes z_text, the prior turns it into a z_image, the decoder draws that.

Paper: Ramesh et al. 2022, sec. 2. The three models know nothing of each other; they meet here.
"""

from dataclasses import replace
from pathlib import Path

import torch

from minidalle.checkpoint import load_model
from minidalle.clip import CLIP
from minidalle.data.batches import World
from minidalle.decoder import Decoder
from minidalle.losses import LossAt, clip_stage, decoder_stage, prior_stage, upsampler_stage
from minidalle.pipeline import decoder_diffusion, prior_diffusion
from minidalle.prior import DiffusionPrior
from minidalle.training.recipes import STAGES, Recipe
from minidalle.upsampler import Upsampler

KINDS = {model.kind: model for model in (CLIP, DiffusionPrior, Decoder, Upsampler)}


def loss_of(
    stage: str,
    model: torch.nn.Module,
    clip_folder: Path,
    recipe: Recipe,
    image_size: int,
    seed: int,
    device: torch.device,
) -> LossAt:
    """Put a stage's loss together; every stage sees scenes of its own."""
    batch_size = getattr(recipe, stage).batch_size
    if stage == "upsampler":
        world = World(model.config.image_size, -1 - seed, recipe.two_things)
        return upsampler_stage(model, decoder_diffusion().to(device), world, batch_size)
    world = World(image_size, len(STAGES) * seed + STAGES.index(stage), recipe.two_things)
    if stage == "clip":
        return clip_stage(model, replace(world, twins=True, full_captions=0.5), batch_size)
    clip = load_model(CLIP, clip_folder)[0].to(device).eval()
    if stage == "prior":
        return prior_stage(model, clip, prior_diffusion().to(device), world, batch_size)
    return decoder_stage(model, clip, decoder_diffusion().to(device), world, batch_size)
