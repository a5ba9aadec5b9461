"""The forward process, what a network learns of it, and guidance. This file knows no network.

Everything here works on any shape (B, ...), so the same class noises pictures for the decoder and vectors for the
prior; a t of shape (B, K) gives each of K rows of an example a timestep of its own. Names that start with q_ are the
fixed process, names with p_ the learned one. t = 0 is one noising step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from minidalle.checks import finite_number

Model = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (x_t, t) to the network's output, both of shape (B, ...)
Guidable = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # (x_t, t, hide), see guided

PREDICTIONS = ("x_start", "eps", "v")


def linear_betas(num_timesteps: int) -> torch.Tensor:
    """Give the linear noise schedule, stretched so that any number of steps above 20 ends in almost pure noise.

    Returns: betas (T,), float64.
    Paper: Ho et al. 2020, sec. 4: 1e-4 to 0.02 at 1000 steps.
    """
    scale = 1000 / num_timesteps
    return torch.linspace(1e-4 * scale, 0.02 * scale, num_timesteps, dtype=torch.float64)


def cosine_betas(num_timesteps: int, offset: float = 0.008, max_beta: float = 0.999) -> torch.Tensor:
    """Give the cosine noise schedule.

    Returns: betas (T,), float64.
    Paper: Nichol and Dhariwal 2021, eq. 17.
    """
    steps = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    alphas_cumprod = torch.cos((steps + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=max_beta)


SCHEDULES = {"linear": linear_betas, "cosine": cosine_betas}


@dataclass(frozen=True)
class DiffusionConfig:
    """What a network must know to run its process backwards; it is kept with the network's weights."""

    schedule: str = "cosine"  # a key of SCHEDULES
    num_timesteps: int = 1000  # T
    prediction: str = "x_start"  # one of PREDICTIONS

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f'"{self.schedule}" is no noise schedule; choose one of {", ".join(SCHEDULES)}.')

    def build(self) -> "GaussianDiffusion":
        """Make the process."""
        return GaussianDiffusion(SCHEDULES[self.schedule](self.num_timesteps), self.prediction)


def extract(table: torch.Tensor, t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Look up table[t] and append dimensions of size 1, so that it multiplies a tensor of like's shape."""
    return table[t].view(*t.shape, *[1] * (like.ndim - t.ndim))


class GaussianDiffusion(nn.Module):
    """The process q that turns data to noise, and the arithmetic of running it backwards.

    Paper: Ho et al. 2020, sec. 2 and 3; v-prediction from Salimans and Ho 2022, sec. 4.
    """

    def __init__(self, betas: torch.Tensor, prediction: str = "v"):
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f'"{prediction}" is no prediction target; choose one of {", ".join(PREDICTIONS)}.')
        if betas.ndim != 1 or not ((betas > 0) & (betas < 1)).all():
            found = f"shape {tuple(betas.shape)}, values from {betas.min():g} to {betas.max():g}"
            raise ValueError(f"A schedule is one row of betas between 0 and 1; found {found}: choose other steps.")
        self.prediction = prediction
        self.num_timesteps = len(betas)
        betas = betas.double()  # products of a thousand factors need the precision; the tables kept are float32
        alphas_cumprod = torch.cumprod(1 - betas, 0)
        previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
        tables = {
            "betas": betas,
            "alphas_cumprod": alphas_cumprod,
            "sqrt_alphas_cumprod": alphas_cumprod.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - alphas_cumprod).sqrt(),
            # q(x_prev | x_t, x_start), Ho et al. 2020, eq. 7
            "posterior_variance": betas * (1 - previous) / (1 - alphas_cumprod),
            "posterior_coef_x_start": betas * previous.sqrt() / (1 - alphas_cumprod),
            "posterior_coef_x_t": (1 - previous) * (1 - betas).sqrt() / (1 - alphas_cumprod),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)

    def q_sample(self, x_start: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Draw x_t given x_start in one jump.

        Args:
            x_start: clean data (B, ...).
            t: timesteps (B,), int64 in 0 to T - 1.
            noise: standard normal, like x_start.

        Paper: Ho et al. 2020, eq. 4.
        """
        if x_start.shape != noise.shape:
            raise ValueError(
                f"The noise has shape {tuple(noise.shape)}, the data {tuple(x_start.shape)}: make them equal."
            )
        signal = extract(self.sqrt_alphas_cumprod, t, x_start)
        return signal * x_start + extract(self.sqrt_one_minus_alphas_cumprod, t, x_start) * noise

    def q_posterior(
        self, x_start: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give mean and variance of x_prev when both ends are known; the variance is shaped to broadcast.

        Paper: Ho et al. 2020, eq. 6 and 7.
        """
        mean = extract(self.posterior_coef_x_start, t, x_t) * x_start + extract(self.posterior_coef_x_t, t, x_t) * x_t
        return mean, extract(self.posterior_variance, t, x_t)

    def target(self, x_start: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Give what the network is to output for this x_start and noise."""
        if self.prediction == "x_start":
            return x_start
        if self.prediction == "eps":
            return noise
        signal, sigma = self.sqrt_alphas_cumprod, self.sqrt_one_minus_alphas_cumprod
        return extract(signal, t, x_start) * noise - extract(sigma, t, x_start) * x_start

    def pred_x_start(self, output: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Turn the network's output into its estimate of x_start."""
        if self.prediction == "x_start":
            return output
        signal = extract(self.sqrt_alphas_cumprod, t, x_t)
        sigma = extract(self.sqrt_one_minus_alphas_cumprod, t, x_t)
        return (x_t - sigma * output) / signal if self.prediction == "eps" else signal * x_t - sigma * output

    def pred_eps(self, x_start: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Give the noise that, with this x_start, makes x_t."""
        signal = extract(self.sqrt_alphas_cumprod, t, x_t)
        return (x_t - signal * x_start) / extract(self.sqrt_one_minus_alphas_cumprod, t, x_t)

    def training_loss(self, model: Model, x_start: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Measure how far the network's output is from its target: mean squared error of each example, like t.

        Paper: Ho et al. 2020, eq. 14, with the target of Salimans and Ho 2022 for v.
        """
        output = model(self.q_sample(x_start, t, noise), t).float()
        return (output - self.target(x_start, noise, t)).square().flatten(t.ndim).mean(-1)

    def p_x_start(self, model: Model, x_t: torch.Tensor, t: torch.Tensor, clip_x_start: bool) -> torch.Tensor:
        """Let the network guess x_start; clip it to [-1, 1] where the data is known to lie there (pictures)."""
        x_start = self.pred_x_start(model(x_t, t).float(), x_t, t)
        return x_start.clamp(-1, 1) if clip_x_start else x_start


def guided(model: Guidable, guidance_scale: float) -> Model:
    """Push the conditional output away from the unconditional one; 1 is off.

    Args:
        model: (x_t, t, hide) to the network's output; hide (B,) is True where the condition is not to be seen.
        guidance_scale: 0 ignores the condition, 1 follows it, more exaggerates it.

    Both outputs come from one call on a doubled batch, which is faster than two.
    Raises: ValueError: when the scale is not a finite number.
    Paper: Ho and Salimans 2022, eq. 6, with guidance_scale = 1 + w.
    """
    guidance_scale = finite_number(guidance_scale, "guidance_scale")

    def plain(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return model(x_t, t, torch.zeros_like(t, dtype=torch.bool))

    def pushed(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        hide = torch.arange(2 * len(t), device=t.device) >= len(t)
        cond, uncond = model(torch.cat([x_t, x_t]), torch.cat([t, t]), hide).chunk(2)
        return uncond + guidance_scale * (cond - uncond)

    return plain if guidance_scale == 1 else pushed
