"""Sizes of the models and how long, how fast and on what they are trained, one frozen dataclass each.

What does not differ between recipes stands where it is used: what a stage sees in runs.py and stages.py.
"""

from dataclasses import dataclass

from minidalle.clip import CLIPConfig
from minidalle.decoder import DecoderConfig
from minidalle.prior import PriorConfig
from minidalle.upsampler import UpsamplerConfig

STAGES = ("clip", "prior", "decoder")  # of a stack, in the order of training
ALL_STAGES = (*STAGES, "upsampler")  # the upsampler stands alone: it needs no other, and no other needs it


@dataclass(frozen=True)
class StageRecipe:
    """How one stage is trained."""

    steps: int
    batch_size: int
    matrix_lr: float  # Muon's, for matrices and kernels
    lr: float  # AdamW's, for the rest
    weight_decay: float = 0.0  # of matrices and kernels
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
    upsampler: StageRecipe


@dataclass(frozen=True)
class Preset:
    """Sizes of the whole stack, and its recipes."""

    name: str
    clip: CLIPConfig
    prior: PriorConfig
    decoder: DecoderConfig
    upsampler: UpsamplerConfig
    recipes: dict[str, Recipe]

    def __post_init__(self):
        agreed = {
            "embed_dim": {self.clip.embed_dim, self.prior.embed_dim, self.decoder.embed_dim},
            "text width": {self.clip.width, self.prior.text_width, self.decoder.text_width},
            "image_size": {self.clip.image_size, self.decoder.unet.image_size, self.upsampler.low_size},
        }
        for name, values in agreed.items():
            if len(values) > 1:
                raise ValueError(
                    f"The models of the preset {self.name} differ in {name}: {sorted(values)}; choose one."
                )


TINY = Preset(
    name="tiny",
    clip=CLIPConfig(),
    prior=PriorConfig(),
    decoder=DecoderConfig(),
    upsampler=UpsamplerConfig(),
    recipes={
        "quick": Recipe(
            two_things=0.0,
            clip=StageRecipe(steps=500, batch_size=128, matrix_lr=0.02, lr=2e-3),
            prior=StageRecipe(steps=640, batch_size=32, matrix_lr=0.02, lr=2e-3),
            decoder=StageRecipe(steps=640, batch_size=64, matrix_lr=0.01, lr=2e-3, weight_decay=0.1),
            upsampler=StageRecipe(steps=400, batch_size=64, matrix_lr=0.01, lr=2e-3),
        ),
        "full": Recipe(
            two_things=0.6,
            clip=StageRecipe(steps=3200, batch_size=128, matrix_lr=0.02, lr=2e-3),
            prior=StageRecipe(steps=3000, batch_size=32, matrix_lr=0.02, lr=2e-3, ema_decay=0.998),
            decoder=StageRecipe(steps=4000, batch_size=64, matrix_lr=0.01, lr=2e-3, weight_decay=0.1, ema_decay=0.998),
            upsampler=StageRecipe(steps=2000, batch_size=64, matrix_lr=0.01, lr=2e-3, ema_decay=0.998),
        ),
    },
)
PRESETS = {preset.name: preset for preset in (TINY,)}
