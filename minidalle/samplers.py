"""Ways back from noise to data. Each is a generator of steps, so that the film strip of a sampling run is free.

A sampler of your own must step in alphas_cumprod or in the angle arccos(sqrt(alphas_cumprod)), not in sigma, the root
of (1 - alphas_cumprod) / alphas_cumprod: the cosine schedule ends at alphas_cumprod of about 1e-9, where sigma is
20,000, and a method of second order in sigma fails there without a word.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from minidalle.checks import whole_number
from minidalle.diffusion import GaussianDiffusion, Model

Noise = torch.Generator | Sequence[torch.Generator] | None  # where noise comes from: one for all rows, or one for each


@dataclass(frozen=True)
class Step:
    """One step of a sampling run."""

    t: int  # the timestep the network was asked at
    pred_x_start: torch.Tensor  # the network's guess of the data at that step, (B, ...)
    x_prev: torch.Tensor  # where the step ended, (B, ...); the result, after the last


def spaced_timesteps(num_timesteps: int, num_steps: int) -> list[int]:
    """Choose the timesteps of a shortened run: evenly spaced, the noisiest always among them.

    Returns: num_steps numbers, from num_timesteps - 1 down.
    Raises: ValueError: when num_steps is no whole number, below 1 or above the schedule's.
    Paper: Lin et al. 2024, table 2, "trailing".
    """
    num_steps = whole_number(num_steps, "The number of sampling steps", 1, num_timesteps)
    return [round(num_timesteps - i * num_timesteps / num_steps) - 1 for i in range(num_steps)]


def draw_noise(like: torch.Tensor, generator: Noise) -> torch.Tensor:
    """Draw standard normal noise where the generator lives and move it: a CPU seed means the same on any device.

    Args:
        like: (B, ...), whose shape and device the noise has.
        generator: one for all, or a sequence of B, one for each row.
    """
    if isinstance(generator, Sequence):
        return torch.cat([draw_noise(row[None], one) for row, one in zip(like, generator, strict=True)])
    device = generator.device if generator is not None else like.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=torch.float32).to(like.device)


def _pairs(diffusion: GaussianDiffusion, num_steps: int) -> list[tuple[int, float, float]]:
    """List (t, alphas_cumprod at t, alphas_cumprod at the next t); after the last step it is 1: no noise left."""
    timesteps = spaced_timesteps(diffusion.num_timesteps, num_steps)
    levels = [diffusion.alphas_cumprod[t].item() for t in timesteps]
    return list(zip(timesteps, levels, [*levels[1:], 1.0], strict=True))


def _batch_of(t: int, x: torch.Tensor) -> torch.Tensor:
    return torch.full((len(x),), t, device=x.device)


def start_midway(
    diffusion: GaussianDiffusion, x_start: torch.Tensor, num_steps: int, skip: int, generator: Noise
) -> torch.Tensor:
    """Noise data (B, ...) as far as it would be after the first steps of a run, which can then be left out.

    Raises: ValueError: when not at least one step remains.
    Paper: Meng et al. 2022 (SDEdit), sec. 3.
    """
    timesteps = spaced_timesteps(diffusion.num_timesteps, num_steps)
    t = timesteps[whole_number(skip, "The number of steps that are left out", 0, num_steps - 1)]
    return diffusion.q_sample(x_start, _batch_of(t, x_start), draw_noise(x_start, generator))


def ddpm_sample_loop(
    diffusion: GaussianDiffusion,
    model: Model,
    x_t: torch.Tensor,
    num_steps: int,
    clip_x_start: bool = True,
    generator: Noise = None,
    skip: int = 0,
) -> Iterator[Step]:
    """Sample from the learned reverse process, with the posterior's variance.

    Args:
        diffusion: the schedule and the meaning of the network's output.
        model: (x_t, t) to output.
        x_t: noise to start from (B, ...).
        num_steps: 1 to T; below T the posterior is that of the shortened schedule.
        clip_x_start: True for pictures, False for embeddings.
        generator: the source of the noise added at each step.
        skip: steps at the start that are left out; x_t is then what start_midway gives.

    Paper: Ho et al. 2020, algorithm 2, with the variance of eq. 7.
    """
    for t, level, level_prev in _pairs(diffusion, num_steps)[skip:]:
        x_start = diffusion.p_x_start(model, x_t, _batch_of(t, x_t), clip_x_start)
        alpha = level / level_prev
        mean = (level_prev**0.5 * (1 - alpha) * x_start + alpha**0.5 * (1 - level_prev) * x_t) / (1 - level)
        std = ((1 - alpha) * (1 - level_prev) / (1 - level)) ** 0.5
        x_t = mean + std * draw_noise(x_t, generator) if std else mean
        yield Step(t, x_start, x_t)


def ddim_sample_loop(
    diffusion: GaussianDiffusion,
    model: Model,
    x_t: torch.Tensor,
    num_steps: int,
    clip_x_start: bool = True,
    generator: Noise = None,
    eta: float = 0.0,
) -> Iterator[Step]:
    """Sample along the implicit process: eta = 0 is deterministic, eta = 1 adds as much noise as DDPM.

    The arguments are those of ddpm_sample_loop. Paper: Song et al. 2021, eq. 12 and 16.
    """
    for t, level, level_prev in _pairs(diffusion, num_steps):
        batch_t = _batch_of(t, x_t)
        x_start = diffusion.p_x_start(model, x_t, batch_t, clip_x_start)
        eps = diffusion.pred_eps(x_start, x_t, batch_t)
        std = eta * ((1 - level_prev) / (1 - level) * (1 - level / level_prev)) ** 0.5
        x_t = level_prev**0.5 * x_start + max(1 - level_prev - std**2, 0.0) ** 0.5 * eps
        if std:
            x_t = x_t + std * draw_noise(x_t, generator)
        yield Step(t, x_start, x_t)


def ddim_inversion_loop(
    diffusion: GaussianDiffusion, model: Model, x_start: torch.Tensor, num_steps: int, clip_x_start: bool = True
) -> Iterator[Step]:
    """Run DDIM backwards, from data to the noise that ddim_sample_loop turns into it.

    A step of DDIM is a rotation, x_prev = cos(angle) x_t - sin(angle) v. It is solved for x_t by asking the network at
    a guess of x_t, twice; guesses for x_start or eps in place of v drift where there is almost only noise, or none.

    Raises: ValueError: when num_steps is below 2 (one step turns all noise into much the same) or above the schedule's.
    Paper: Salimans and Ho 2022, appendix D; Dhariwal and Nichol 2021, appendix F; used by Ramesh et al. 2022, sec. 3.
    """
    if num_steps == 1:
        raise ValueError("DDIM cannot be run backwards in 1 step: choose 2 or more.")
    x = x_start
    for t, level, level_prev in reversed(_pairs(diffusion, num_steps)):
        angle = math.acos(level**0.5) - math.acos(level_prev**0.5)
        guess = x
        for _ in range(2):
            pred = diffusion.p_x_start(model, guess, _batch_of(t, x), clip_x_start)
            eps = diffusion.pred_eps(pred, guess, _batch_of(t, x))
            v = level**0.5 * eps - (1 - level) ** 0.5 * pred
            guess = x / math.cos(angle) + math.tan(angle) * v
        x = guess
        yield Step(t, pred, x)


def dpm_solver_sample_loop(
    diffusion: GaussianDiffusion,
    model: Model,
    x_t: torch.Tensor,
    num_steps: int,
    clip_x_start: bool = True,
    generator: Noise = None,
) -> Iterator[Step]:
    """Sample with DPM-Solver++(2M): each step also uses the guess of the step before. Deterministic.

    The arguments are those of ddpm_sample_loop; the generator is not used. The last step is of first order, since the
    log signal-to-noise ratio it goes to is infinite.
    Paper: Lu et al. 2022, algorithm 2.
    """
    last_x_start, last_width = None, 0.0
    for t, level, level_prev in _pairs(diffusion, num_steps):
        x_start = diffusion.p_x_start(model, x_t, _batch_of(t, x_t), clip_x_start)
        if level_prev == 1.0:
            yield Step(t, x_start, x_start)
            return
        width = _half_log_snr(level_prev) - _half_log_snr(level)
        direction = x_start
        if last_x_start is not None:
            direction = x_start + width / (2 * last_width) * (x_start - last_x_start)
        sigma, sigma_prev = (1 - level) ** 0.5, (1 - level_prev) ** 0.5
        decay = (level * (1 - level_prev) / (level_prev * (1 - level))) ** 0.5  # e to the minus width
        x_t = sigma_prev / sigma * x_t + level_prev**0.5 * (1 - decay) * direction
        last_x_start, last_width = x_start, width
        yield Step(t, x_start, x_t)


def _half_log_snr(level: float) -> float:
    return 0.5 * torch.logit(torch.tensor(level, dtype=torch.float64)).item()


SAMPLERS = {"ddpm": ddpm_sample_loop, "ddim": ddim_sample_loop, "dpm": dpm_solver_sample_loop}


def last(steps: Iterator[Step]) -> torch.Tensor:
    """Run a sampler to its end and give the result, (B, ...)."""
    for step in steps:
        result = step.x_prev
    return result
