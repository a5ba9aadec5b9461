"""What rivals that diffuse have in common: a UNet that reads captions by itself, its loss, its guided prediction."""

from dataclasses import dataclass, field

import torch
from einops import repeat
from torch import nn

from minidalle.data.batches import Batch
from minidalle.diffusion import GaussianDiffusion, Model, guided
from minidalle.losses import EVEN, Noise, draw_mask, draw_normal, mean_of, rows_of
from minidalle.rivals.text import RivalConfig, TextEncoder
from minidalle.training.recipes import StageRecipe
from minidalle.unet import UNet, UNetConfig


@dataclass(frozen=True)
class DenoiserConfig(RivalConfig):
    """Sizes of a UNet that reads captions."""

    unet: UNetConfig = field(default_factory=UNetConfig)


@dataclass(frozen=True)
class DenoisingLossConfig:
    """What shapes a denoising loss; the papers' own settings are timestep_power 1, root_below None."""

    p_drop_text: float = 0.1  # share of captions that are hidden (Saharia et al. 2022, sec. 2.2)
    timestep_power: float = 1.0  # t = T u^power for an even u, see decoder_loss in losses.py
    root_below: float | None = 0.01  # take the root of each example's error, but below this leave it a square


class Denoiser(nn.Module):
    """A text encoder and a UNet that attends to its states; their mean joins the timestep's embedding.

    Paper: Saharia et al. 2022 (Imagen), sec. 2.5. We differ: the text encoder is trained with the UNet, as in GLIDE
    (Nichol et al. 2021, sec. 4.1), since there is no large language model here to freeze.
    """

    def __init__(self, config: DenoiserConfig):
        super().__init__()
        self.config = config
        self.text = TextEncoder(config)
        self.to_emb = nn.Linear(config.text_width, config.unet.emb_dim)
        self.to_context = nn.Linear(config.text_width, config.unet.context_dim)
        self.null = nn.Parameter(0.02 * torch.randn(config.unet.context_dim))  # what there is to see without a caption
        self.unet = UNet(config.unet)

    def forward(
        self,
        x_t: torch.Tensor,
        t: torch.Tensor,
        tokens: torch.Tensor,
        mask: torch.Tensor,
        hide: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict what x_t (B, C, H, W) was before the noise, from captions: tokens (B, L) and mask (B, L)."""
        return self.denoise(x_t, t, self.text(tokens, mask)[1], mask, hide)

    def denoise(
        self,
        x_t: torch.Tensor,
        t: torch.Tensor,
        states: torch.Tensor,
        mask: torch.Tensor,
        hide: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Do the same by the states (B, L, W) of captions; those where hide (B,) is True are not seen."""
        pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        emb, context = self.to_emb(pooled), self.to_context(states)
        if hide is not None:
            emb, mask = emb.masked_fill(hide[:, None], 0.0), mask & ~hide[:, None]
        context = torch.cat([self.null.to(context.dtype).expand(len(context), 1, -1), context], dim=1)
        mask = torch.cat([mask.new_ones(len(mask), 1), mask], dim=1)
        return self.unet(x_t, t, emb, context, mask)


def denoising_loss(
    predict: Model, x_start: torch.Tensor, generator: Noise, config: DenoisingLossConfig, diffusion: GaussianDiffusion
) -> torch.Tensor:
    """Draw timesteps and noise for data (B, ...), and measure how well it is found again: ()."""
    u = rows_of(EVEN, (len(x_start),), generator).to(x_start.device)
    t = (diffusion.num_timesteps * u**config.timestep_power).long()
    errors = diffusion.training_loss(predict, x_start, t, draw_normal(x_start, generator))
    return mean_of(errors, config.root_below)


def captioned_loss(
    model: nn.Module,
    x_start: torch.Tensor,
    batch: Batch,
    generator: Noise,
    config: DenoisingLossConfig,
    diffusion: GaussianDiffusion,
) -> torch.Tensor:
    """Do so by the captions of a batch, some of which are hidden, for guidance: ()."""
    hide = draw_mask(batch, config.p_drop_text, generator)

    def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return model(x_t, t, batch.tokens, batch.mask, hide)

    return denoising_loss(predict, x_start, generator, config, diffusion)


def reader(model: Denoiser, tokens: torch.Tensor, mask: torch.Tensor, guidance_scale: float) -> Model:
    """Read captions once, and give what a sampler calls: (x_t, t) to the guided prediction; scale 1 is no guidance.

    Paper: Ho and Salimans 2022, eq. 6.
    """
    return by_states(model, model.text(tokens, mask)[1], mask, guidance_scale)


def by_states(model: Denoiser, states: torch.Tensor, mask: torch.Tensor, guidance_scale: float) -> Model:
    """Do the same for captions that were read: states (B, L, W) and mask (B, L)."""

    def predict(x_t: torch.Tensor, t: torch.Tensor, hide: torch.Tensor) -> torch.Tensor:
        read, seen = (repeat(x, "b ... -> (n b) ...", n=len(x_t) // len(mask)) for x in (states, mask))
        return model.denoise(x_t, t, read, seen, hide).float()

    return guided(predict, guidance_scale)


def recipe(steps: int, loss: object, ema_decay: float) -> StageRecipe:
    """Describe a training; half of the captions state everything, or their words are learned too slowly."""
    return StageRecipe(
        steps,
        64,
        matrix_lr=0.01,
        lr=2e-3,
        weight_decay=0.1,
        ema_decay=ema_decay,
        loss=loss,
        full_captions=0.5,
    )
