"""Sizes of the models, and every number that shapes how they are trained: frozen dataclasses.

A number that stands for a choice says on what it rests; docs/experiments.md has the trials.
"""

from dataclasses import asdict, dataclass, field, replace

from minidalle.ar_prior import AutoregressivePriorConfig
from minidalle.clip import CLIPConfig
from minidalle.decoder import DecoderConfig
from minidalle.diffusion import DiffusionConfig
from minidalle.losses import AutoregressivePriorLossConfig, DecoderLossConfig, PriorLossConfig, UpsamplerLossConfig
from minidalle.prior import PriorConfig
from minidalle.tokenizer import Tokenizer
from minidalle.unet import UNetConfig
from minidalle.upsampler import UpsamplerConfig
from minidalle.world.captions import TOKENIZER


@dataclass(frozen=True)
class StageRecipe:
    """How one stage is trained."""

    steps: int
    batch_size: int
    matrix_lr: float  # Muon's, for matrices and kernels
    lr: float  # AdamW's, for the rest
    weight_decay: float = 0.0  # of matrices and kernels
    matrix_momentum: float = 0.95  # Muon's
    betas: tuple[float, float] = (0.9, 0.99)  # AdamW's: decays of its averages of gradients and of their squares
    warmup_steps: int = 20  # over which both learning rates rise from zero
    decay_share: float = 0.5  # last part of the training, over which both fall to zero
    ema_decay: float = 0.99  # of the averaged weights, the ones that are kept
    clip_norm: float = 1.0  # longest gradient of all parameters together
    loss: object = None  # the config of its loss, such as PriorLossConfig; CLIP's has none
    hard_negatives: bool = False  # whether every second picture differs from the one before it in one attribute
    full_captions: float = 0.0  # share of captions that state everything

    def to_dict(self) -> dict:
        """Describe it in JSON's types; usual momenta go without saying, as in what was kept before they were fields."""
        usual = {name: getattr(StageRecipe, name) for name in ("matrix_momentum", "betas")}
        return {name: value for name, value in asdict(self).items() if name not in usual or value != usual[name]}


@dataclass(frozen=True)
class Recipe:
    """How all stages are trained."""

    two_objects: float  # share of scenes with two objects
    stages: dict[str, StageRecipe]


@dataclass(frozen=True)
class Preset:
    """Sizes of all models, the processes they are trained for, and recipes."""

    name: str
    models: dict[str, object]  # a config for each stage
    recipes: dict[str, Recipe]
    world: str = "scenes"  # what it is made for, a key of COLLECTIONS in stages.py
    compiled: bool = False  # on CUDA by torch.compile and with channels last: minutes at first, then faster, if large
    diffusion: dict[str, DiffusionConfig] = field(
        default_factory=lambda: dict.fromkeys(("prior", "decoder", "upsampler", "upsampler_2"), DiffusionConfig())
    )  # cosine, 1000 timesteps (table 3). We differ for the decoder: it predicts the picture, not its noise (Li and He
    # 2025), since a small network learns plain pictures several times faster than the noise on them

    def __post_init__(self):
        clip, decoder = self.models["clip"], self.models["decoder"]
        priors = [self.models[name] for name in ("prior", "ar_prior") if name in self.models]
        agreed = {
            "embed_dim": {clip.embed_dim, decoder.embed_dim, *(prior.embed_dim for prior in priors)},
            "text width": {clip.width, decoder.text_width, *(prior.text_width for prior in priors)},
            "context length": {clip.context_length, *(prior.context_length for prior in priors)},
            "image_size": {clip.image_size, decoder.unet.image_size},
        }
        if "upsampler" in self.models:
            agreed["image_size"].add(self.models["upsampler"].low_size)
        if "upsampler_2" in self.models:
            agreed["size after an upsampler"] = {
                self.models["upsampler"].image_size,
                self.models["upsampler_2"].low_size,
            }
        for name, values in agreed.items():
            if len(values) > 1:
                raise ValueError(
                    f"The models of the preset {self.name} differ in {name}: {sorted(values)}; choose one."
                )


def fitted(preset: Preset, tokenizer: Tokenizer) -> Preset:
    """Give a preset the sizes that a tokenizer asks for."""
    sizes = {"vocab_size": tokenizer.vocab_size, "context_length": tokenizer.context_length}
    models = {
        stage: replace(config, **{name: size for name, size in sizes.items() if hasattr(config, name)})
        for stage, config in preset.models.items()
    }
    return replace(preset, models=models)


def clip_recipe(steps: int, batch_size: int = 128) -> StageRecipe:
    """Describe a training of CLIP: half of the captions state everything, and every picture has a hard negative."""
    return StageRecipe(steps, batch_size, matrix_lr=0.02, lr=2e-3, hard_negatives=True, full_captions=0.5)


def prior_recipe(steps: int, ema_decay: float = 0.99) -> StageRecipe:
    """Describe a training of the prior: 32 captions a step, six noised z_image each."""
    return StageRecipe(steps, 32, matrix_lr=0.02, lr=2e-3, ema_decay=ema_decay, loss=PriorLossConfig())


def ar_prior_recipe(steps: int, ema_decay: float = 0.99) -> StageRecipe:
    """Describe a training of the autoregressive prior: with Muon at 0.04 its loss fell more slowly."""
    return StageRecipe(steps, 64, matrix_lr=0.01, lr=2e-3, ema_decay=ema_decay, loss=AutoregressivePriorLossConfig())


def decoder_recipe(steps: int, ema_decay: float = 0.99) -> StageRecipe:
    """Describe a training of the decoder."""
    return StageRecipe(
        steps, 64, matrix_lr=0.01, lr=2e-3, weight_decay=0.1, ema_decay=ema_decay, loss=DecoderLossConfig()
    )


def upsampler_recipe(steps: int, ema_decay: float = 0.99) -> StageRecipe:
    """Describe a training of the upsampler."""
    return StageRecipe(steps, 64, matrix_lr=0.01, lr=2e-3, ema_decay=ema_decay, loss=UpsamplerLossConfig())


def second_upsampler_recipe(steps: int, ema_decay: float = 0.99) -> StageRecipe:
    """Describe a training of the second upsampler, whose small pictures are spoilt in many ways (sec. 2.1)."""
    loss = UpsamplerLossConfig(p_blur=0.0, p_degrade=0.75)
    return replace(upsampler_recipe(steps, ema_decay), batch_size=32, loss=loss)


QUICK = Recipe(
    two_objects=0.0,
    stages={
        "clip": clip_recipe(700),
        "prior": prior_recipe(800),
        "ar_prior": ar_prior_recipe(800),
        "decoder": decoder_recipe(640),
        "upsampler": upsampler_recipe(400),
        "upsampler_2": second_upsampler_recipe(400),
    },
)
FULL = Recipe(
    two_objects=0.6,
    stages={
        "clip": clip_recipe(3600),
        "prior": prior_recipe(3600, ema_decay=0.998),
        "ar_prior": ar_prior_recipe(6600, ema_decay=0.998),
        "decoder": decoder_recipe(4800, ema_decay=0.998),
        "upsampler": upsampler_recipe(2000, ema_decay=0.998),
        "upsampler_2": second_upsampler_recipe(2000, ema_decay=0.998),
    },
)


def shortened(recipe: Recipe, share: int = 20) -> Recipe:
    """Give a recipe of a twentieth of the steps, which shows that everything runs and learns next to nothing."""
    stages = {
        name: replace(how, steps=max(2, how.steps // share), warmup_steps=2) for name, how in recipe.stages.items()
    }
    return replace(recipe, stages=stages)


TINY = Preset(
    name="tiny",
    models={
        "clip": CLIPConfig(vocab_size=TOKENIZER.vocab_size, context_length=TOKENIZER.context_length),
        "prior": PriorConfig(context_length=TOKENIZER.context_length),
        "ar_prior": AutoregressivePriorConfig(context_length=TOKENIZER.context_length),
        "decoder": DecoderConfig(),
        "upsampler": UpsamplerConfig(),
        "upsampler_2": UpsamplerConfig(
            UNetConfig(in_channels=6, channels=24, channel_mults=(1, 2), context_dim=0), image_size=128
        ),
    },
    recipes={"smoke": shortened(QUICK), "quick": QUICK, "full": FULL},
)

# Names of emoji are learned by heart as well as composed, so the decoder reads them in most of its steps, and z_image
# comes with more noise, since a prior that has met each name a few dozen times is seldom exact
EMOJI_LOSS = DecoderLossConfig(p_drop_text=0.2, image_noise=0.3)


def emoji_recipe(clip: tuple[int, int], prior: tuple[int, int], decoder: tuple[int, int], ema_decay: float) -> Recipe:
    """Describe a training on emoji by the steps and the batch size of each stage."""
    stages = {
        "clip": replace(clip_recipe(*clip), full_captions=0.8),
        "prior": replace(prior_recipe(prior[0], ema_decay), batch_size=prior[1], full_captions=0.8),
        "decoder": replace(
            decoder_recipe(decoder[0], ema_decay), batch_size=decoder[1], full_captions=0.8, loss=EMOJI_LOSS
        ),
    }
    return Recipe(two_objects=0.0, stages=stages)


EMOJI_QUICK = emoji_recipe(clip=(1300, 128), prior=(1600, 32), decoder=(2800, 64), ema_decay=0.998)
EMOJI = Preset(
    name="emoji",
    models={
        "clip": CLIPConfig(embed_dim=128),
        "prior": PriorConfig(embed_dim=128, width=192, depth=4, num_heads=6),
        "decoder": DecoderConfig(UNetConfig(channels=64), embed_dim=128),
    },
    recipes={
        "smoke": shortened(EMOJI_QUICK),
        "quick": EMOJI_QUICK,  # twenty minutes on two cores
        "full": emoji_recipe(clip=(4000, 256), prior=(6000, 64), decoder=(11000, 128), ema_decay=0.999),  # for a GPU
    },
    world="emoji",
)

# Signs: the sizes of tiny; the decoder is trained for longer, since there is twice as much to draw
SIGNS_QUICK = Recipe(
    two_objects=0.0,
    stages={"clip": clip_recipe(700), "prior": prior_recipe(800), "decoder": decoder_recipe(1200)},
)
SIGNS_FULL = Recipe(
    two_objects=0.0,
    stages={
        "clip": clip_recipe(3600),
        "prior": prior_recipe(3600, ema_decay=0.998),
        "decoder": decoder_recipe(7200, ema_decay=0.998),
    },
)
SIGNS = Preset(
    name="signs",
    models={"clip": CLIPConfig(), "prior": PriorConfig(), "decoder": DecoderConfig()},
    recipes={"smoke": shortened(SIGNS_QUICK), "quick": SIGNS_QUICK, "full": SIGNS_FULL},
    world="signs",
)

# Scenes of 64 pixels, for a GPU of 16 GB: patches are twice as wide, so both networks see as many cells as at 32 pixels
COLAB_FULL = Recipe(
    two_objects=0.6,
    stages={
        "clip": clip_recipe(2500, 256),
        "prior": replace(prior_recipe(2500, ema_decay=0.998), batch_size=64),
        "decoder": replace(decoder_recipe(3000, ema_decay=0.998), batch_size=128),
    },
)
COLAB = Preset(
    name="colab",
    models={
        "clip": CLIPConfig(
            vocab_size=TOKENIZER.vocab_size, context_length=TOKENIZER.context_length, image_size=64, patch_size=16
        ),
        "prior": PriorConfig(context_length=TOKENIZER.context_length),
        "decoder": DecoderConfig(UNetConfig(image_size=64, channels=64, channel_mults=(1, 2, 2, 2))),
        "upsampler": UpsamplerConfig(
            UNetConfig(image_size=32, in_channels=6, channels=32, channel_mults=(1, 2), context_dim=0), image_size=128
        ),
    },
    recipes={"smoke": shortened(COLAB_FULL, 500), "full": COLAB_FULL},
)

# The paper's stack at a tenth of its width: pictures of 64 pixels and an upsampler to 256, for one data-centre GPU
LARGE_FULL = Recipe(
    two_objects=0.6,
    stages={
        "clip": clip_recipe(10_000, 1024),
        "prior": replace(prior_recipe(20_000, ema_decay=0.999), batch_size=256),
        "decoder": replace(decoder_recipe(20_000, ema_decay=0.999), batch_size=256, matrix_lr=0.005),
        "upsampler": replace(upsampler_recipe(20_000, ema_decay=0.999), batch_size=128, matrix_lr=0.005),
    },
)
LARGE = Preset(
    name="large",
    models={
        "clip": CLIPConfig(
            vocab_size=TOKENIZER.vocab_size, context_length=TOKENIZER.context_length, image_size=64, embed_dim=256,
            width=512, image_depth=8, text_depth=8, num_heads=8,
        ),
        "prior": PriorConfig(
            context_length=TOKENIZER.context_length, embed_dim=256, text_width=512, width=768, depth=12, num_heads=12
        ),
        "decoder": DecoderConfig(
            UNetConfig(
                image_size=64, channels=512, channel_mults=(1, 2, 2), num_blocks=2, attention_levels=(2,), emb_dim=512,
                context_dim=512,
            ),
            embed_dim=256,
            text_width=512,
        ),
        "upsampler": UpsamplerConfig(
            UNetConfig(image_size=64, in_channels=6, channels=192, channel_mults=(1, 2, 3, 4), context_dim=0),
            image_size=256,
            factor=4,
        ),
    },
    recipes={"smoke": shortened(LARGE_FULL, 5000), "full": LARGE_FULL},
    compiled=True,
)  # fmt: skip

PRESETS = {preset.name: preset for preset in (TINY, EMOJI, SIGNS, COLAB, LARGE)}
