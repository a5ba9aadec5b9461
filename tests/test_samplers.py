"""The samplers: equal to diffusers step by step, and right where the answer is known without any network."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st

from minidalle.diffusion import SCHEDULES, GaussianDiffusion, Model, extract
from minidalle.samplers import (
    SAMPLERS,
    ddim_inversion_loop,
    ddim_sample_loop,
    ddpm_sample_loop,
    dpm_solver_sample_loop,
    draw_noise,
    last,
    spaced_timesteps,
)

SHAPES = [(3, 5), (3, 3, 4, 4)]  # vectors and pictures
# eps needs a division by the signal, of which the cosine schedule leaves too little at its end for float32
CASES = [("linear", "eps"), ("linear", "v"), ("cosine", "v"), ("cosine", "x_start")]
DIFFUSERS_NAMES = {
    "linear": "linear",
    "cosine": "squaredcos_cap_v2",
    "eps": "epsilon",
    "v": "v_prediction",
    "x_start": "sample",
}
NUM_STEPS = (1, 2, 5, 20, 50)
POINTS = torch.tensor([[0.8, 0.8], [-0.8, 0.8], [0.0, -0.8], [0.0, -0.8]])  # one stands twice


def build(schedule: str = "cosine", prediction: str = "v") -> GaussianDiffusion:
    return GaussianDiffusion(SCHEDULES[schedule](1000), prediction)


def answering(diffusion: GaussianDiffusion, guess) -> Model:
    """Make a network of a function (x_t, level) to x_start."""

    def model(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x_start = guess(x_t, extract(diffusion.alphas_cumprod, t, x_t))
        return diffusion.target(x_start, diffusion.pred_eps(x_start, x_t, t), t)

    return model


def crooked(x_t: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """Guess something smooth that leaves [-1, 1] here and there, and that does not magnify rounding errors."""
    return 0.4 * x_t + 0.2 * torch.sin(2 * x_t.flip(-1)) * level + torch.linspace(-1, 1, x_t.shape[-1])


def nearest_points(x_t: torch.Tensor, level: torch.Tensor, points: torch.Tensor = POINTS) -> torch.Tensor:
    """Guess the mean of the points that x_t may come from: the ideal denoiser of a finite data set."""
    data = points.view(1, len(points), -1)
    distances = (x_t.flatten(1)[:, None] - level.view(-1, 1, 1).sqrt() * data).square().sum(-1)
    weights = (-distances / (2 * (1 - level.view(-1, 1)))).softmax(1)
    return (weights @ data[0]).view_as(x_t)


MEAN, STD = torch.tensor([0.3, -0.2]), 0.5


def of_a_gaussian(x_t: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """Guess the posterior mean of data that is normal with MEAN and STD."""
    return MEAN + STD**2 * level.sqrt() / (level * STD**2 + 1 - level) * (x_t - level.sqrt() * MEAN)


def flow_of_a_gaussian(diffusion: GaussianDiffusion, noise: torch.Tensor, t: int) -> torch.Tensor:
    """Solve the probability flow of that data exactly, from the last timestep to t: x_t keeps its place in the bell."""
    first, level = diffusion.alphas_cumprod[-1], diffusion.alphas_cumprod[t]
    place = (noise - first.sqrt() * MEAN) / (first * STD**2 + 1 - first).sqrt()
    return level.sqrt() * MEAN + (level * STD**2 + 1 - level).sqrt() * place


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference(scheduler, model: Model, x_t: torch.Tensor, num_steps: int, **options) -> list:
    """Run a scheduler of diffusers: the timesteps, and where each step ended."""
    scheduler.set_timesteps(num_steps)
    steps = []
    for t in scheduler.timesteps.tolist():
        x_t = scheduler.step(model(x_t, torch.full((len(x_t),), t)), t, x_t, **options).prev_sample
        steps.append((t, x_t))
    return steps


def assert_same_run(steps, expected: list) -> None:
    steps = list(steps)
    assert [step.t for step in steps] == [t for t, _ in expected]
    for step, (_, x_prev) in zip(steps, expected, strict=True):
        torch.testing.assert_close(step.x_prev, x_prev, rtol=1e-4, atol=1e-4)


def scheduler_options(schedule: str, prediction: str) -> dict:
    return {
        "num_train_timesteps": 1000,
        "beta_schedule": DIFFUSERS_NAMES[schedule],
        "prediction_type": DIFFUSERS_NAMES[prediction],
        "timestep_spacing": "trailing",
    }


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("schedule,prediction", CASES)
def test_ddpm_equals_diffusers(schedule, prediction, shape, clip):
    diffusion, noise = build(schedule, prediction), torch.randn(shape)
    model = answering(diffusion, crooked)
    scheduler = DDPMScheduler(variance_type="fixed_small", clip_sample=clip, **scheduler_options(schedule, prediction))
    for num_steps in (*NUM_STEPS, 7):
        expected = reference(scheduler, model, noise, num_steps, generator=seeded())
        assert_same_run(ddpm_sample_loop(diffusion, model, noise, num_steps, clip, seeded()), expected)


@pytest.mark.parametrize("schedule,prediction", CASES)
def test_ddpm_equals_diffusers_over_the_whole_schedule(schedule, prediction):
    diffusion, noise = build(schedule, prediction), torch.randn(3, 5)
    model = answering(diffusion, crooked)
    scheduler = DDPMScheduler(variance_type="fixed_small", **scheduler_options(schedule, prediction))
    expected = reference(scheduler, model, noise, 1000, generator=seeded())
    assert_same_run(ddpm_sample_loop(diffusion, model, noise, 1000, True, seeded()), expected)


# The end of the cosine schedule at eta = 1 is left out: the root of a rounded difference there makes diffusers' result
# imprecise or not a number. That case is compared with DDPM, further down.
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "schedule,prediction,eta",
    [(*case, eta) for case in CASES for eta in (0.0, 0.5, 1.0) if eta < 1 or case[0] == "linear"],
)
def test_ddim_equals_diffusers(schedule, prediction, shape, clip, eta):
    diffusion, noise = build(schedule, prediction), torch.randn(shape)
    model = answering(diffusion, crooked)
    scheduler = DDIMScheduler(clip_sample=clip, **scheduler_options(schedule, prediction))
    options = {"eta": eta, "use_clipped_model_output": True}
    for num_steps in NUM_STEPS:  # all divide 1000; for others diffusers asks at one timestep and steps to another
        expected = reference(scheduler, model, noise, num_steps, generator=seeded(), **options)
        assert_same_run(ddim_sample_loop(diffusion, model, noise, num_steps, clip, seeded(), eta), expected)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # from within diffusers
@pytest.mark.parametrize("shape,clip", [(SHAPES[0], False), (SHAPES[1], False), (SHAPES[1], True)])
@pytest.mark.parametrize("schedule,prediction", CASES)
def test_dpm_solver_equals_diffusers(schedule, prediction, shape, clip):
    diffusion, noise = build(schedule, prediction), torch.randn(shape)
    model = answering(diffusion, crooked)
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        thresholding=clip,  # with the next line, that clips to [-1, 1]
        sample_max_value=1.0,
        **scheduler_options(schedule, prediction),
    )
    for num_steps in (*NUM_STEPS, 7, 15):
        expected = reference(scheduler, model, noise, num_steps)
        assert_same_run(dpm_solver_sample_loop(diffusion, model, noise, num_steps, clip), expected)


def test_ddpm_over_the_whole_schedule_is_the_posterior():
    diffusion, noise = build("linear"), torch.randn(3, 5)
    model, x_t, generator = answering(diffusion, crooked), noise, seeded()
    for step in ddpm_sample_loop(diffusion, model, noise, 1000, True, seeded()):
        t = torch.full((3,), step.t)
        mean, variance = diffusion.q_posterior(step.pred_x_start, x_t, t)
        expected = mean + variance.sqrt() * torch.randn(3, 5, generator=generator)
        torch.testing.assert_close(step.x_prev, expected, rtol=1e-3, atol=1e-4)
        x_t = step.x_prev


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 2, 5, 40, 1000])
def test_ddim_with_all_its_noise_is_ddpm(schedule, num_steps):
    diffusion, noise = build(schedule), torch.randn(3, 5)
    model = answering(diffusion, crooked)
    ddpm = ddpm_sample_loop(diffusion, model, noise, num_steps, True, seeded())
    ddim = ddim_sample_loop(diffusion, model, noise, num_steps, True, seeded(), eta=1.0)
    for step, other in zip(ddim, ddpm, strict=True):
        torch.testing.assert_close(step.x_prev, other.x_prev, rtol=1e-4, atol=1e-4)


@given(st.integers(1, 1000), st.data())
def test_timesteps_are_evenly_spaced_from_the_noisiest_down(num_timesteps, data):
    num_steps = data.draw(st.integers(1, num_timesteps))
    timesteps = spaced_timesteps(num_timesteps, num_steps)
    assert len(timesteps) == num_steps and timesteps[0] == num_timesteps - 1 and timesteps[-1] >= 0
    gaps = [a - b for a, b in zip(timesteps, [*timesteps[1:], -1], strict=True)]
    assert min(gaps) >= 1 and all(abs(gap - num_timesteps / num_steps) <= 1 for gap in gaps)


@pytest.mark.parametrize("num_steps", [0, -1, 1001, 2.5, 20.0, True, None, "20", math.nan])
def test_numbers_of_steps_that_make_no_sense_are_refused(num_steps):
    diffusion, noise = build(), torch.randn(2, 2)
    for sampler in (*SAMPLERS.values(), ddim_inversion_loop):
        with pytest.raises(
            ValueError, match=rf"steps is {re.escape(repr(num_steps))}; a whole number from 1 to 1000 was|in 1 step"
        ):
            next(sampler(diffusion, answering(diffusion, crooked), noise, num_steps))


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_step_ends_at_its_guess(name):
    diffusion, noise = build(), torch.randn(3, 5)
    steps = list(SAMPLERS[name](diffusion, answering(diffusion, crooked), noise, 6))
    assert [step.t for step in steps] == spaced_timesteps(1000, 6)
    torch.testing.assert_close(steps[-1].x_prev, steps[-1].pred_x_start)
    assert all(step.pred_x_start.abs().max() <= 1 for step in steps)


@pytest.mark.parametrize("shape", [(4096, 2), (4096, 1, 2, 1)])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_with_the_ideal_denoiser_samples_are_data_in_the_right_proportions(name, schedule, shape):
    diffusion, noise = build(schedule), torch.randn(shape)
    samples = last(SAMPLERS[name](diffusion, answering(diffusion, nearest_points), noise, 40, generator=seeded()))
    distances = torch.cdist(samples.flatten(1), POINTS[:3])
    assert distances.amin(1).max() < 0.05
    shares = distances.argmin(1).bincount(minlength=3) / 4096
    torch.testing.assert_close(shares, torch.tensor([0.25, 0.25, 0.5]), rtol=0, atol=0.035)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_gaussian_data_keeps_its_mean_and_spread(name, schedule):
    diffusion, noise = build(schedule), torch.randn(8192, 2)
    model = answering(diffusion, of_a_gaussian)
    samples = last(SAMPLERS[name](diffusion, model, noise, 200, clip_x_start=False, generator=seeded()))
    torch.testing.assert_close(samples.mean(0), MEAN, rtol=0, atol=0.025)
    torch.testing.assert_close(samples.std(0), torch.full((2,), STD), rtol=0.04, atol=0)


@pytest.mark.parametrize("name,order", [("ddim", 1), ("dpm", 2)])
def test_twice_the_steps_come_nearer_the_exact_flow_by_the_order_of_the_sampler(name, order):
    diffusion, noise = build("linear"), torch.randn(512, 2)
    model, errors = answering(diffusion, of_a_gaussian), []
    for num_steps in (10, 20, 40):  # half way, for the last step of both is of first order
        half = list(SAMPLERS[name](diffusion, model, noise, num_steps, clip_x_start=False))[num_steps // 2 - 1]
        errors.append((half.x_prev - flow_of_a_gaussian(diffusion, noise, 499)).abs().mean().item())
    for coarse, fine in itertools.pairwise(errors):
        assert 2 ** (order - 0.3) < coarse / fine < 2 ** (order + 0.3)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_second_order_needs_fewer_steps(schedule):
    diffusion, noise = build(schedule), torch.randn(512, 2)
    model, exact = answering(diffusion, of_a_gaussian), flow_of_a_gaussian(diffusion, noise, 0)
    errors = [
        (last(sampler(diffusion, model, noise, 40, clip_x_start=False)) - exact).abs().mean()
        for sampler in (ddim_sample_loop, dpm_solver_sample_loop)
    ]
    assert errors[1] < errors[0] / 4


@pytest.mark.parametrize("shape", [(512, 2), (64, 3, 4, 2)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_inversion_finds_the_noise_that_gives_the_data_back(schedule, shape):
    diffusion, x_start = build(schedule), MEAN + STD * torch.randn(shape)
    model = answering(diffusion, of_a_gaussian)
    steps = list(ddim_inversion_loop(diffusion, model, x_start, 50, clip_x_start=False))
    assert [step.t for step in steps] == spaced_timesteps(1000, 50)[::-1]
    noise = steps[-1].x_prev
    again = last(ddim_sample_loop(diffusion, model, noise, 50, clip_x_start=False))
    torch.testing.assert_close(again, x_start, rtol=0, atol=2e-3)
    assert noise.std().item() == pytest.approx(1, abs=0.1)


def test_inversion_undoes_ddim_and_comes_nearer_with_more_steps():
    diffusion, noise = build(), torch.randn(512, 2)
    model = answering(diffusion, of_a_gaussian)
    errors = []
    for num_steps in (5, 20, 80):
        x_start = last(ddim_sample_loop(diffusion, model, noise, num_steps, clip_x_start=False))
        found = last(ddim_inversion_loop(diffusion, model, x_start, num_steps, clip_x_start=False))
        errors.append((found - noise).abs().mean().item())
    assert errors[1] < errors[0] / 4 and errors[2] < errors[1] / 4 and errors[2] < 1e-3


def test_inversion_in_one_step_is_refused():
    diffusion = build()
    with pytest.raises(ValueError, match="cannot be run backwards in 1 step: choose 2 or more"):
        next(ddim_inversion_loop(diffusion, answering(diffusion, crooked), torch.zeros(1, 2), 1))


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_generator_alone_decides_the_result(name):
    diffusion, noise = build(), torch.randn(3, 5)
    model = answering(diffusion, crooked)
    first, second, third = (
        last(SAMPLERS[name](diffusion, model, noise, 10, generator=seeded(seed))) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert torch.equal(first, third) == (name != "ddpm")  # the others add no noise


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["ddim", "dpm"])
def test_a_batch_is_its_members_one_by_one(name, shape):
    diffusion, noise = build(), torch.randn(shape)
    model = answering(diffusion, crooked)
    one_by_one = torch.cat([last(SAMPLERS[name](diffusion, model, x[None], 10)) for x in noise])
    torch.testing.assert_close(last(SAMPLERS[name](diffusion, model, noise, 10)), one_by_one)


@pytest.mark.parametrize("name", SAMPLERS)
def test_with_a_generator_for_each_row_a_row_does_not_depend_on_the_others(name):
    diffusion, noise = build(), torch.randn(3, 5)
    model = answering(diffusion, crooked)
    together = last(SAMPLERS[name](diffusion, model, noise, 10, generator=[seeded(n) for n in range(3)]))
    alone = [last(SAMPLERS[name](diffusion, model, noise[n, None], 10, generator=[seeded(n)])) for n in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_noise_of_several_generators_is_that_of_each():
    like = torch.empty(3, 2, 4)
    found = draw_noise(like, [seeded(n) for n in range(3)])
    expected = torch.stack([torch.randn(2, 4, generator=seeded(n)) for n in range(3)])
    assert torch.equal(found, expected) and torch.equal(draw_noise(like[:1], seeded(0)), expected[:1])
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        draw_noise(like, [seeded()])


@pytest.mark.parametrize("steps", [np.int64(5), torch.tensor(5), np.uint8(5)])
def test_a_whole_number_of_any_type_counts_steps(steps):
    assert spaced_timesteps(1000, steps) == spaced_timesteps(1000, 5)


def test_the_last_step_of_the_solver_is_the_networks_guess_wherever_it_lies():
    diffusion, noise = build(), 3 * torch.randn(3, 5)
    model = answering(diffusion, lambda x_t, level: 2 * torch.ones_like(x_t))
    for name in SAMPLERS:
        assert last(SAMPLERS[name](diffusion, model, noise, 4)).max() == 1
        free = last(SAMPLERS[name](diffusion, model, noise, 4, clip_x_start=False))
        torch.testing.assert_close(free, torch.full((3, 5), 2.0), rtol=1e-3, atol=1e-3)
