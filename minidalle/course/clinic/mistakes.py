"""Mistakes that people published, each as one changed habit of a small system, and how its patients were trained.

The world is a corner of the drawn one: a large object on black. Every network here trains in less than a minute on one
thread, so each mistake can be made again; make.py made those in data/clinic.
"""

import copy
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch
from torch import nn

from minidalle import losses
from minidalle.checks import whole_number
from minidalle.clip import CLIP, CLIPConfig, contrastive_loss
from minidalle.data.batches import Batch
from minidalle.decoder import Decoder, DecoderConfig
from minidalle.diffusion import GaussianDiffusion, cosine_betas, extract
from minidalle.layers import scale_embedding
from minidalle.losses import DecoderLossConfig, PriorLossConfig
from minidalle.prior import DiffusionPrior, PriorConfig
from minidalle.training.loop import fit
from minidalle.training.recipes import StageRecipe
from minidalle.training.stages import step_generator
from minidalle.unet import UNetConfig
from minidalle.world.captions import TOKENIZER, Description, SaidObject, write
from minidalle.world.render import render
from minidalle.world.scenes import draw_scene

Networks = dict[str, nn.Module]  # clip, prior, decoder, or some of them

KIND = "clinic"
CONTEXT = TOKENIZER.context_length
SIZES = {
    "clip": CLIPConfig(TOKENIZER.vocab_size, CONTEXT, embed_dim=32, width=48, image_depth=1, text_depth=1, pool_dim=12),
    "prior": PriorConfig(CONTEXT, embed_dim=32, text_width=48, width=48, depth=1),
    "decoder": DecoderConfig(
        UNetConfig(patch_size=4, channels=20, channel_mults=(1, 1), emb_dim=48, context_dim=48),
        embed_dim=32,
        text_width=48,
    ),
}
CLASSES = {"clip": CLIP, "prior": DiffusionPrior, "decoder": Decoder}
RECIPES = {  # rates do not fall at the end, so the averaged weights are needed
    "clip": StageRecipe(240, 128, matrix_lr=0.02, lr=2e-3, decay_share=0.0),
    "prior": StageRecipe(320, 32, matrix_lr=0.02, lr=2e-3, decay_share=0.0, ema_decay=0.98, loss=PriorLossConfig()),
    "decoder": StageRecipe(450, 64, matrix_lr=0.02, lr=2e-3, decay_share=0.0, ema_decay=0.98, loss=DecoderLossConfig()),
}
SHARE_PLACE = 0.5  # of captions that say the place
MEAN, STD = -0.66, 0.44  # of the pixels of this world


@dataclass(frozen=True)
class Habits:
    """How a system is trained and sampled: each default is right, each other value was a mistake in public code."""

    pixels: str = "[-1, 1]"  # that the decoder is trained on; or "[0, 1]", or "standardised": mean 0, deviation 1
    signal: str = "alphas_cumprod"  # what is left of a picture at t; or "alphas": of a single step of noise
    noise: str = "deviation"  # by which a sampler's fresh noise is multiplied; or "variance", or "none"
    z_scaled: bool = True  # whether the prior's z_image is as wide as the noise
    z_from: str = "prior"  # what the decoder receives; or "prior at every step", or "text"
    dropped: bool = True  # whether training drops conditions
    paired: bool = True  # whether the prior meets each picture with its own caption
    masked: bool = True  # whether equal captions are left out of the negatives
    frozen: bool = True  # whether CLIP stays as it is while the prior trains
    averaged: bool = True  # whether the averaged weights are kept


MISTAKES = {
    "healthy": Habits(),
    "pictures in [0, 1]": Habits(pixels="[0, 1]"),
    "clipped outside its range": Habits(pixels="standardised"),
    "beta for alpha-bar": Habits(signal="alphas"),
    "variance for deviation": Habits(noise="variance"),
    "no noise on the way back": Habits(noise="none"),
    "unscaled z_image": Habits(z_scaled=False),
    "prior at every step": Habits(z_from="prior at every step"),
    "z_text for z_image": Habits(z_from="text"),
    "no dropped conditions": Habits(dropped=False),
    "shuffled captions": Habits(paired=False),
    "duplicates as negatives": Habits(masked=False),
    "CLIP not frozen": Habits(frozen=False),
    "EMA forgotten": Habits(averaged=False),
}


@dataclass(frozen=True)
class SmallWorld:
    """An endless stream of large objects on black, whose captions state shape, colour and half of the places."""

    seed: int = 0
    tokenizer = TOKENIZER

    def batch(self, step: int, batch_size: int) -> Batch:
        """Draw the batch of a step; the same on every machine."""
        rng, scenes, captions = random.Random(f"{self.seed}/{step}"), [], []
        for _ in range(whole_number(batch_size, "The batch size")):
            scene = draw_scene(rng, two_objects=0.0)
            item = replace(scene.objects[0], size="large")
            scenes.append(replace(scene, objects=(item,), background="black"))
            place = scene.place if rng.random() < SHARE_PLACE else None
            captions.append(write(Description((SaidObject(item.shape, item.color),), place)))
        return Batch(render(scenes), *TOKENIZER.encode(captions), captions, scenes)


class OneStep(GaussianDiffusion):
    """A process that forgets to multiply: at any t a picture is noised as if by one step."""

    def q_sample(self, x_start: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Noise a picture by the beta of t alone."""
        beta = extract(self.betas, t, x_start)
        return (1 - beta).sqrt() * x_start + beta.sqrt() * noise


def stages_of(habits: Habits) -> tuple[str, ...]:
    """Name the networks whose training a habit changes; of CLIP, all that are trained on it change as well."""
    if not habits.masked:
        return ("clip", "prior", "decoder")
    if not habits.frozen:
        return ("clip", "prior")
    if not (habits.z_scaled and habits.paired):
        return ("prior",)
    right = Habits(noise=habits.noise, z_from=habits.z_from)
    return ("decoder",) if habits != right else ()


def process(habits: Habits) -> GaussianDiffusion:
    """Make the decoder's process."""
    make = GaussianDiffusion if habits.signal == "alphas_cumprod" else OneStep
    return make(cosine_betas(1000), "x_start")


def to_model(images: torch.Tensor, habits: Habits) -> torch.Tensor:
    """Turn pictures in [-1, 1] into what the decoder is trained on."""
    if habits.pixels == "standardised":
        return (images - MEAN) / STD
    return (images + 1) / 2 if habits.pixels == "[0, 1]" else images


def from_model(x: torch.Tensor, habits: Habits) -> torch.Tensor:
    """Turn what the decoder draws into pictures to show. Who forgot to rescale on the way in forgets it here too."""
    return x * STD + MEAN if habits.pixels == "standardised" else x


def z_start(z_image: torch.Tensor, habits: Habits) -> torch.Tensor:
    """Turn a z_image (..., D) of norm 1 into what the prior is trained to find."""
    return scale_embedding(z_image) if habits.z_scaled else z_image


def shuffled(batch: Batch) -> Batch:
    """Give each picture of a batch the caption of its neighbour."""
    return replace(batch, tokens=batch.tokens.roll(1, 0), mask=batch.mask.roll(1, 0))


def clip_loss(clip: nn.Module, batch: Batch, habits: Habits) -> torch.Tensor:
    """Give CLIP's loss of a batch: ()."""
    z_image, z_text, scale = clip(batch.images, batch.tokens, batch.mask)
    rows = batch.tokens if habits.masked else torch.arange(len(z_text), device=z_text.device)[:, None]
    return contrastive_loss(z_image, z_text, scale, rows)


def prior_loss(prior: nn.Module, batch: Batch, generator: torch.Generator, habits: Habits, clip: CLIP) -> torch.Tensor:
    """Give the prior's loss of a batch: (). Where CLIP is not frozen, its gradient flows too."""
    batch = batch if habits.paired else shuffled(batch)
    how, diffusion = RECIPES["prior"].loss, process(Habits())
    with torch.set_grad_enabled(torch.is_grad_enabled() and not habits.frozen):
        x_start = z_start(clip.encode_image(batch.images), habits)
        text = clip.encode_text(batch.tokens, batch.mask)
    x_start = x_start[:, None].expand(-1, how.noises, -1)
    t = losses.draw_integers(1000, x_start.shape[:2], generator)
    noise, hide = losses.draw_normal(x_start, generator), losses.draw_mask(batch, how.p_drop_text, generator)
    errors = (prior(diffusion.q_sample(x_start, t, noise), t, text, hide) - x_start).square().mean(-1)
    return (losses.prior_weights(diffusion, how.max_weight)[t] * errors).mean()


def decoder_loss(
    decoder: nn.Module, batch: Batch, generator: torch.Generator, habits: Habits, clip: CLIP
) -> torch.Tensor:
    """Give the decoder's loss of a batch: ()."""
    how = RECIPES["decoder"].loss
    how = how if habits.dropped else replace(how, p_drop_image=0.0, p_drop_text=0.0)
    z_image = clip.encode_image(batch.images)
    towers = SimpleNamespace(encode_image=lambda _: z_image, encode_text=clip.encode_text)
    batch = replace(batch, images=to_model(batch.images, habits))
    return losses.decoder_loss(decoder, batch, generator, how, towers, process(habits))


def digest_of(*parts: object) -> str:
    """Hide what would be read by accident."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:12]


def file_name(mistake: str) -> str:
    """Name the file of the networks that were trained with a mistake."""
    return f"{mistake if mistake == 'healthy' else digest_of(mistake)}.safetensors"


def train(habits: Habits, seed: int = 0, steps: int | None = None, healthy: Networks | None = None) -> Networks:
    """Train the networks that habits change.

    Args:
        habits: how the system is trained.
        seed: of all that is drawn.
        steps: of each training; None: as many as the recipes have.
        healthy: those that are not trained; None: all are.

    Returns: clip, prior and decoder, or those of them that differ from the healthy ones.
    """
    stages = stages_of(habits) if healthy else tuple(CLASSES)
    models = dict(healthy or {})
    if "clip" in stages and habits.frozen:
        models["clip"] = run("clip", lambda clip, batch, _: clip_loss(clip, batch, habits), habits, seed, steps)
    if "prior" in stages:
        models["clip"], models["prior"] = train_prior(habits, models["clip"], seed, steps)
    if "decoder" in stages:
        clip = models["clip"]
        models["decoder"] = run(
            "decoder", lambda decoder, batch, g: decoder_loss(decoder, batch, g, habits, clip), habits, seed, steps
        )
    return {stage: models[stage] for stage in stages}


def train_prior(
    habits: Habits, clip: CLIP, seed: int = 0, steps: int | None = None, on_log: Callable[[dict], None] | None = None
) -> tuple[CLIP, nn.Module]:
    """Train a prior; gives CLIP as well, which has moved where it was not frozen."""
    moving = copy.deepcopy(clip).requires_grad_(not habits.frozen)
    both = nn.ModuleDict({"clip": moving, "prior": fresh("prior", seed)})

    def loss(both: nn.Module, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        return prior_loss(both["prior"], batch, generator, habits, both["clip"])

    both = run("prior", loss, habits, seed, steps, both, on_log)
    return both["clip"], both["prior"]


def fresh(stage: str, seed: int) -> nn.Module:
    """Make a small network with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CLASSES[stage](SIZES[stage])


def run(
    stage: str,
    loss: Callable[[nn.Module, Batch, torch.Generator], torch.Tensor],
    habits: Habits,
    seed: int = 0,
    steps: int | None = None,
    model: nn.Module | None = None,
    on_log: Callable[[dict], None] | None = None,
) -> nn.Module:
    """Run the course's training loop on one of the small networks."""
    recipe, world = replace(RECIPES[stage], steps=steps or RECIPES[stage].steps), SmallWorld(seed)
    model = fresh(stage, seed) if model is None else model

    def loss_at(model: nn.Module, step: int) -> torch.Tensor:
        return loss(model, world.batch(step, recipe.batch_size), step_generator(seed, step))

    averaged = fit(model, loss_at, recipe, stage, on_log=on_log, progress=False)
    return (averaged if habits.averaged else model).eval().requires_grad_(False)
