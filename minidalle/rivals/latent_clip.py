"""Latent diffusion that reads captions by CLIP: the text tower is trained before, by matching, and then frozen.

Paper: Rombach et al. 2022, with the text encoder of Stable Diffusion 1 (CLIP's; Radford et al. 2021). It shows what
`latent` lacks, whose own text encoder learns from pixels alone.
"""

from dataclasses import dataclass

import torch
from torch import nn

from minidalle.clip import CLIP
from minidalle.data.batches import Batch
from minidalle.diffusion import DiffusionConfig, GaussianDiffusion
from minidalle.losses import Noise, draw_mask
from minidalle.parallel import unwrap
from minidalle.rivals import latent
from minidalle.rivals.denoiser import DenoisingLossConfig, by_states, denoising_loss
from minidalle.rivals.family import Family, Rival
from minidalle.rivals.kl_autoencoder import KLAutoencoder, draw_latent
from minidalle.rivals.latent import Latent, LatentConfig, fit_scale, sample
from minidalle.training.recipes import TINY, StageRecipe
from minidalle.training.stages import STAGES, Stage


@dataclass(frozen=True)
class LatentClipConfig(LatentConfig):
    """Sizes of the diffusion model; text_width is that of CLIP."""

    text_width: int = 128
    num_heads: int = 4


class LatentClip(Latent):
    """Draw the latent of a caption that CLIP has read."""

    kind, config_class = "latent_clip", LatentClipConfig

    def __init__(self, config: LatentClipConfig):
        super().__init__(config)
        self.text = None  # CLIP's is read in its place

    def forward(
        self,
        x_t: torch.Tensor,
        t: torch.Tensor,
        states: torch.Tensor,
        mask: torch.Tensor,
        hide: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict what x_t (B, C, h, w) was before the noise, from CLIP's states (B, L, W) of captions."""
        return self.denoise(x_t, t, states, mask, hide)


def latent_clip_loss(
    model: nn.Module,
    batch: Batch,
    generator: Noise,
    config: DenoisingLossConfig,
    kl_autoencoder: KLAutoencoder,
    clip: CLIP,
    diffusion: GaussianDiffusion,
) -> torch.Tensor:
    """Learn as latent does, by captions that a frozen CLIP reads."""
    x_start = draw_latent(kl_autoencoder, batch, generator) * unwrap(model, LatentClip).scale
    with torch.no_grad():
        states = clip.encode_text(batch.tokens, batch.mask).states
    hide = draw_mask(batch, config.p_drop_text, generator)

    def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return model(x_t, t, states, batch.mask, hide)

    return denoising_loss(predict, x_start, generator, config, diffusion)


def draw(
    rival: Rival,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    generator: Noise,
    num_inference_steps: int,
    guidance_scale: float,
) -> torch.Tensor:
    """Draw a latent of each caption, and its picture."""
    model, states = rival.models["latent_clip"], rival.models["clip"].encode_text(tokens, mask).states
    predict = by_states(model, states, mask, guidance_scale)
    return sample(rival, model, predict, len(tokens), generator, num_inference_steps)


def recipes(name: str, autoencoder: int, steps: int, ema_decay: float) -> dict[str, StageRecipe]:
    """Describe a training: CLIP's is unCLIP's own."""
    of_latent = latent.recipes(autoencoder, steps, ema_decay)
    clip = TINY.recipes[name].stages["clip"]
    return {"clip": clip, "kl_autoencoder": of_latent["kl_autoencoder"], "latent_clip": of_latent["latent"]}


FAMILY = Family(
    name="latent_clip",
    summary="diffusion in latents, captions read by a frozen CLIP",
    stages={
        "clip": STAGES["clip"],
        "kl_autoencoder": latent.FAMILY.stages["kl_autoencoder"],
        "latent_clip": Stage(LatentClip, latent_clip_loss, needs=("kl_autoencoder", "clip"), before=fit_scale),
    },
    models={
        "clip": TINY.models["clip"],
        "kl_autoencoder": latent.FAMILY.models["kl_autoencoder"],
        "latent_clip": LatentClipConfig(),
    },
    recipes={"quick": recipes("quick", 1400, 1100, 0.99), "full": recipes("full", 14_000, 11_000, 0.999)},
    draw=draw,
    networks=lambda models: {
        "text tower": models["clip"].text_tower,
        "denoiser": models["latent_clip"].unet,
        "decoder": models["kl_autoencoder"].decoder,
    },
    options=latent.FAMILY.options,
    diffusion={"latent_clip": DiffusionConfig()},
)
