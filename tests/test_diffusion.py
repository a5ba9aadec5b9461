"""The forward process and its arithmetic, against diffusers, Bayes' rule and closed forms."""

import math
import re

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from minidalle.diffusion import PREDICTIONS, SCHEDULES, DiffusionConfig, GaussianDiffusion, guided

SHAPES = [(6, 5), (6, 3, 4, 4)]  # vectors and pictures
TIMESTEPS = torch.tensor([0, 1, 10, 300, 700, 990])
DIFFUSERS_NAMES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def build(schedule: str = "linear", prediction: str = "v", num_timesteps: int = 1000) -> GaussianDiffusion:
    return GaussianDiffusion(SCHEDULES[schedule](num_timesteps), prediction)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_equal_those_of_diffusers(schedule):
    scheduler, diffusion = DDPMScheduler(1000, beta_schedule=DIFFUSERS_NAMES[schedule]), build(schedule)
    torch.testing.assert_close(diffusion.betas, scheduler.betas, rtol=0, atol=1e-6)
    torch.testing.assert_close(diffusion.alphas_cumprod, scheduler.alphas_cumprod, rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_timesteps", [50, 1000, 4000])
def test_schedules_of_any_length_end_in_noise(schedule, num_timesteps):
    levels = build(schedule, num_timesteps=num_timesteps).alphas_cumprod
    assert len(levels) == num_timesteps and (levels.diff() < 0).all()
    assert levels[0] > 0.99 and levels[-1] < 1e-4


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_jump_equals_all_the_small_steps(schedule):
    diffusion, mean, variance = build(schedule), 1.0, 0.0
    means, variances = [], []
    for beta in SCHEDULES[schedule](1000).tolist():
        mean, variance = mean * math.sqrt(1 - beta), variance * (1 - beta) + beta
        means.append(mean)
        variances.append(variance)
    ones, t = torch.ones(1000, 1), torch.arange(1000)
    found = diffusion.q_sample(ones, t, torch.zeros(1000, 1)), diffusion.q_sample(0 * ones, t, ones).square()
    torch.testing.assert_close(found[0][:, 0], torch.tensor(means), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[1][:, 0], torch.tensor(variances), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("t", [0, 300, 999])
def test_noised_data_has_the_moments_of_the_paper(t):
    diffusion, x_start = build(), torch.full((40_000, 1), 0.7)
    x_t = diffusion.q_sample(x_start, torch.full((40_000,), t), torch.randn(40_000, 1))
    level = DDPMScheduler(1000).alphas_cumprod[t].item()
    assert x_t.mean().item() == pytest.approx(0.7 * level**0.5, abs=0.02)
    assert x_t.var().item() == pytest.approx(1 - level, rel=0.05)


def test_each_example_has_its_own_timestep():
    diffusion, x_start, noise = build(), torch.randn(6, 3, 4, 4), torch.randn(6, 3, 4, 4)
    rows = [diffusion.q_sample(x_start[i : i + 1], TIMESTEPS[i : i + 1], noise[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(diffusion.q_sample(x_start, TIMESTEPS, noise), torch.cat(rows))


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"noise has shape \(6, 1\), the data \(6, 5\)"):
        build().q_sample(torch.zeros(6, 5), TIMESTEPS, torch.zeros(6, 1))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t", [1, 10, 500, 999])
def test_posterior_is_what_bayes_rule_gives(schedule, t):
    """Multiply q(x_prev | x_start) by q(x_t | x_prev) on a grid and measure the product."""
    betas = SCHEDULES[schedule](1000)
    level_prev, beta = (1 - betas[:t]).prod(), betas[t]
    x_start = 0.6
    mean, std = level_prev.sqrt() * x_start, (1 - level_prev).sqrt()
    x_t = ((1 - beta).sqrt() * mean + 1.3 * (1 - (1 - beta) * level_prev).sqrt()).item()
    x_prev = mean + std * torch.linspace(-9, 9, 200_001, dtype=torch.float64)
    log_density = -((x_prev - mean) ** 2) / (2 * std**2) - (x_t - (1 - beta).sqrt() * x_prev) ** 2 / (2 * beta)
    weights = log_density.softmax(0)
    expected_mean = (weights * x_prev).sum().item()
    expected_variance = (weights * (x_prev - expected_mean) ** 2).sum().item()

    found_mean, found_variance = build(schedule).q_posterior(
        torch.tensor([[x_start]]), torch.tensor([[x_t]]), torch.tensor([t])
    )
    assert found_mean.item() == pytest.approx(expected_mean, abs=1e-5)
    assert found_variance.item() == pytest.approx(expected_variance, rel=1e-4)


def test_the_posterior_of_the_first_step_is_the_data_itself():
    x_start = torch.randn(2, 3, 4, 4)
    mean, variance = build().q_posterior(x_start, torch.randn(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(mean, x_start)
    assert not variance.any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_target_leads_back_to_data_and_noise(prediction, shape):
    diffusion, x_start, noise = build(prediction=prediction), torch.randn(shape), torch.randn(shape)
    x_t = diffusion.q_sample(x_start, TIMESTEPS, noise)
    pred_x_start = diffusion.pred_x_start(diffusion.target(x_start, noise, TIMESTEPS), x_t, TIMESTEPS)
    torch.testing.assert_close(pred_x_start, x_start, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(diffusion.pred_eps(x_start, x_t, TIMESTEPS), noise, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_targets_are_those_of_diffusers(shape):
    scheduler, x_start, noise = DDPMScheduler(1000), torch.randn(shape), torch.randn(shape)
    velocity = scheduler.get_velocity(x_start, noise, TIMESTEPS)
    torch.testing.assert_close(build(prediction="v").target(x_start, noise, TIMESTEPS), velocity, rtol=0, atol=1e-5)
    assert torch.equal(build(prediction="eps").target(x_start, noise, TIMESTEPS), noise)
    assert torch.equal(build(prediction="x_start").target(x_start, noise, TIMESTEPS), x_start)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_network_that_knows_the_data_has_no_loss(prediction, shape):
    diffusion, known = build(prediction=prediction), torch.randn(shape[1:])

    def model(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return diffusion.target(known.expand_as(x_t), diffusion.pred_eps(known, x_t, t), t)

    loss = diffusion.training_loss(model, known.expand(shape), TIMESTEPS, torch.randn(shape))
    assert loss.shape == (6,) and loss.max() < 1e-6


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_is_the_mean_squared_error_of_each_example(prediction):
    diffusion, x_start, noise = build(prediction=prediction), torch.randn(6, 3, 4, 4), torch.randn(6, 3, 4, 4)
    loss = diffusion.training_loss(lambda x_t, t: x_t, x_start, TIMESTEPS, noise)
    for i in range(6):
        level = DDPMScheduler(1000).alphas_cumprod[TIMESTEPS[i]].item()
        x_t = level**0.5 * x_start[i] + (1 - level) ** 0.5 * noise[i]
        v = level**0.5 * noise[i] - (1 - level) ** 0.5 * x_start[i]
        target = {"x_start": x_start[i], "eps": noise[i], "v": v}[prediction]
        assert loss[i].item() == pytest.approx(((x_t - target) ** 2).mean().item(), rel=1e-3)


def test_the_network_is_asked_at_the_noised_data_and_its_timestep():
    diffusion, x_start, noise = build(), torch.randn(6, 5), torch.randn(6, 5)

    def model(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert torch.equal(x_t, diffusion.q_sample(x_start, TIMESTEPS, noise)) and torch.equal(t, TIMESTEPS)
        return x_t

    diffusion.training_loss(model, x_start, TIMESTEPS, noise)


def test_guesses_are_clipped_where_asked():
    diffusion, x_t = build(prediction="x_start"), torch.linspace(-3, 3, 6)[:, None]
    assert torch.equal(diffusion.p_x_start(lambda x, t: x, x_t, TIMESTEPS, clip_x_start=True), x_t.clamp(-1, 1))
    assert torch.equal(diffusion.p_x_start(lambda x, t: x, x_t, TIMESTEPS, clip_x_start=False), x_t)


@pytest.mark.parametrize("shape", [(6, 3, 5), (6, 3, 2, 4)])
def test_rows_of_an_example_may_have_timesteps_of_their_own(shape):
    """A t of shape (B, K) is as good as B * K examples."""
    diffusion, x_start, noise = build(), torch.randn(shape), torch.randn(shape)
    t = torch.randint(1000, (6, 3))
    flat = diffusion.q_sample(x_start.flatten(0, 1), t.flatten(), noise.flatten(0, 1))
    assert torch.equal(diffusion.q_sample(x_start, t, noise).flatten(0, 1), flat)
    found = diffusion.training_loss(lambda x_t, t: x_t, x_start, t, noise)
    expected = diffusion.training_loss(lambda x_t, t: x_t, x_start.flatten(0, 1), t.flatten(), noise.flatten(0, 1))
    assert found.shape == (6, 3)
    torch.testing.assert_close(found.flatten(), expected)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_config_builds_the_process_that_it_names(schedule, prediction):
    found, expected = DiffusionConfig(schedule, 200, prediction).build(), build(schedule, prediction, 200)
    assert torch.equal(found.betas, expected.betas) and found.num_timesteps == 200
    assert found.prediction == prediction
    assert not found.state_dict()  # made from the config, so no part of a model's weights


def test_a_schedule_that_is_none_is_refused():
    with pytest.raises(ValueError, match='"quadratic" is no noise schedule; choose one of linear, cosine'):
        DiffusionConfig("quadratic")


def test_a_prediction_that_is_none_is_refused():
    with pytest.raises(ValueError, match='"noise" is no prediction target; choose one of x_start, eps, v'):
        build(prediction="noise")


@pytest.mark.parametrize("betas", [[0.0, 0.1], [0.1, 1.0], [0.1, -0.1], [0.1, math.nan], [[0.1, 0.2]]])
def test_betas_that_are_no_schedule_are_refused(betas):
    with pytest.raises(ValueError, match="betas between 0 and 1"):
        GaussianDiffusion(torch.tensor(betas))


def conditional(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 2 * x_t + t[:, None]


def unconditional(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x_t.square() - t[:, None]


def network(x_t: torch.Tensor, t: torch.Tensor, hide: torch.Tensor) -> torch.Tensor:
    return torch.where(hide[:, None], unconditional(x_t, t), conditional(x_t, t))


def test_guidance_of_one_asks_for_the_conditional_output_alone():
    def never_hidden(x_t: torch.Tensor, t: torch.Tensor, hide: torch.Tensor) -> torch.Tensor:
        assert len(x_t) == len(TIMESTEPS) and not hide.any()
        return conditional(x_t, t)

    x_t = torch.randn(6, 5)
    assert torch.equal(guided(never_hidden, 1.0)(x_t, TIMESTEPS), conditional(x_t, TIMESTEPS))


def test_guidance_of_zero_is_the_unconditional_network():
    x_t = torch.randn(6, 5)
    torch.testing.assert_close(guided(network, 0)(x_t, TIMESTEPS), unconditional(x_t, TIMESTEPS))


@given(st.floats(-5, 20))
def test_guidance_is_linear_in_its_scale(scale):
    x_t = torch.randn(6, 5)
    c, u = conditional(x_t, TIMESTEPS), unconditional(x_t, TIMESTEPS)
    found = guided(network, scale)(x_t, TIMESTEPS)
    torch.testing.assert_close(found, scale * c + (1 - scale) * u, rtol=1e-4, atol=0.05)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, None, "much", "2", True, torch.ones(2)])
def test_guidance_that_is_not_finite_is_refused(scale):
    with pytest.raises(ValueError, match=rf"guidance_scale is {re.escape(repr(scale))}; a finite number was expected"):
        guided(network, scale)
