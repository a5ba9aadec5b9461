"""Sizes of the models and how they are trained: one frozen dataclass each, nothing hidden elsewhere."""

from dataclasses import dataclass

from minidalle.clip import CLIPConfig
from minidalle.decoder import DecoderConfig
from minidalle.prior import PriorConfig
from minidalle.unet import UNetConfig

STAGES = ("clip", "prior", "decoder")  # in the order of training


@dataclass(frozen=True)
class StageRecipe:
    """How one stage is trained."""

    steps: int
    batch_size: int
    matrix_lr: float  # Muon's, for matrices and kernels
    lr: float  # AdamW's, for the rest
    warmup_steps: int = 20  # over which both learning rates rise from zero
    decay_share: float = 0.5  # last part of the training, over which both fall to zero
    ema_decay: float = 0.99  # of the averaged weights, the ones that are kept
    clip_norm: float = 1.0  # longest gradient of all parameters together


@dataclass(frozen=True)
class Recipe:
    """How the whole stack is trained."""

    two_things: float  # share of scenes with two things
    clip: StageRecipe
    prior: StageRecipe
    decoder: StageRecipe


@dataclass(frozen=True)
class Preset:
    """Sizes of the whole stack, and its recipes."""

    name: str
    clip: CLIPConfig
    prior: PriorConfig
    decoder: DecoderConfig
    recipes: dict[str, Recipe]


def _preset(name: str, image_size: int, embed_dim: int, width: int, recipes: dict, clip: dict, prior: dict, unet: dict):
    """Put a preset together, filling in what its models must agree on."""
    return Preset(
        name=name,
        clip=CLIPConfig(image_size=image_size, embed_dim=embed_dim, width=width, **clip),
        prior=PriorConfig(embed_dim=embed_dim, text_width=width, **prior),
        decoder=DecoderConfig(UNetConfig(image_size=image_size, **unet), embed_dim=embed_dim, text_width=width),
        recipes=recipes,
    )


TINY = _preset(
    "tiny",
    image_size=32,
    embed_dim=64,
    width=128,
    clip={},
    prior={},
    unet={},
    recipes={
        "quick": Recipe(
            two_things=0.0,
            clip=StageRecipe(steps=240, batch_size=256, matrix_lr=0.01, lr=2e-3),
            prior=StageRecipe(steps=300, batch_size=256, matrix_lr=0.01, lr=2e-3),
            decoder=StageRecipe(steps=680, batch_size=64, matrix_lr=0.01, lr=2e-3),
        ),
        "full": Recipe(
            two_things=0.4,
            clip=StageRecipe(steps=1300, batch_size=256, matrix_lr=0.01, lr=2e-3, ema_decay=0.998),
            prior=StageRecipe(steps=1300, batch_size=256, matrix_lr=0.01, lr=2e-3, ema_decay=0.998),
            decoder=StageRecipe(steps=4000, batch_size=64, matrix_lr=0.01, lr=2e-3, ema_decay=0.998),
        ),
    },
)

PRESETS = {preset.name: preset for preset in (TINY,)}
