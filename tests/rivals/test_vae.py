"""The variational autoencoder: KL and ELBO against torch.distributions and a closed form, and its loss by hand."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from minidalle.data.batches import World
from minidalle.rivals import vae
from minidalle.rivals.vae import VAE, VAEConfig, VAELossConfig, log_likelihood, vae_loss

CONFIG = VAEConfig(text_width=16, text_depth=1, num_heads=2, image_size=16, code_dim=4, widths=(8, 8))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


NUMBERS, LOGARITHMS = st.floats(-3, 3, width=32), st.floats(-4, 3, width=32)


@given(st.tuples(NUMBERS, LOGARITHMS, NUMBERS, LOGARITHMS))
def test_the_kl_is_that_of_torch(numbers):
    mean, log_variance, other, other_log_variance = (torch.full((2, 3), number).double() for number in numbers)
    p, q = Normal(mean, (0.5 * log_variance).exp()), Normal(other, (0.5 * other_log_variance).exp())
    found = vae.kl_divergence((mean, log_variance), (other, other_log_variance))
    torch.testing.assert_close(found, kl_divergence(p, q).sum(-1))


def test_the_likelihood_is_that_of_torch():
    images, drawn = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    expected = Normal(drawn, 0.3).log_prob(images).flatten(1).sum(1)
    torch.testing.assert_close(log_likelihood(images, drawn, 0.3), expected)


def elbo_of_a_linear_decoder(mean: torch.Tensor, log_variance: torch.Tensor) -> tuple[float, float]:
    """Integrate over a code of one number on a grid; give the ELBO, and the likelihood that no ELBO exceeds."""
    weights, sigma, picture = torch.tensor([0.8, -0.5, 0.3]).double(), 0.4, torch.tensor([0.9, -0.2, 0.5]).double()
    code = torch.linspace(-10, 10, 20_001, dtype=torch.float64)
    drawn = (code[:, None] * weights).view(-1, 3, 1, 1)
    likelihood = log_likelihood(picture.view(1, 3, 1, 1), drawn, sigma)
    density = Normal(mean, (0.5 * log_variance).exp()).log_prob(code).exp() * (code[1] - code[0])
    prior = torch.zeros(1).double(), torch.zeros(1).double()
    bound = (density * likelihood).sum() - vae.kl_divergence((mean[None], log_variance[None]), prior)
    evidence = MultivariateNormal(
        torch.zeros(3).double(), weights[:, None] * weights + sigma**2 * torch.eye(3).double()
    )
    return float(bound), float(evidence.log_prob(picture))


def test_the_elbo_is_the_likelihood_for_the_true_posterior_and_below_it_for_any_other():
    weights, picture, sigma = torch.tensor([0.8, -0.5, 0.3]), torch.tensor([0.9, -0.2, 0.5]), 0.4
    variance = 1 / (1 + weights.square().sum() / sigma**2)
    mean = variance * (weights * picture).sum() / sigma**2
    bound, evidence = elbo_of_a_linear_decoder(mean.double(), variance.log().double())
    assert bound == pytest.approx(evidence, abs=1e-5)
    for other, spread in ((mean + 0.3, variance), (mean, 4 * variance), (mean, variance / 9)):
        assert elbo_of_a_linear_decoder(other.double(), spread.log().double())[0] < evidence - 1e-3


@pytest.mark.parametrize("progress, share", [(0.0, 0.0), (0.15, 0.5), (0.3, 1.0), (1.0, 1.0)])
def test_the_loss_is_the_negative_elbo_with_a_weight_that_rises(progress, share):
    model, batch, config = VAE(CONFIG), World(16).batch(0, 4), VAELossConfig(kl_warmup=0.3)
    loss = vae_loss(model, batch, generator(5), config, progress)
    noise = torch.randn(4, CONFIG.code_dim, generator=generator(5))
    drawn, posterior, prior = model(batch.images, batch.tokens, batch.mask, noise)
    expected = share * vae.kl_divergence(posterior, prior) - log_likelihood(batch.images, drawn, config.sigma)
    torch.testing.assert_close(loss, expected.mean() / (3 * 16 * 16))


def test_a_code_is_the_mean_and_noise_times_the_spread():
    model, batch = VAE(CONFIG), World(16).batch(0, 2)
    text = model.text(batch.tokens, batch.mask)
    mean, log_variance = model.encode(batch.images, text[0])
    noise = torch.randn(2, CONFIG.code_dim)
    drawn = model(batch.images, batch.tokens, batch.mask, noise)[0]
    code = mean + noise * torch.sqrt(log_variance.exp())
    torch.testing.assert_close(drawn, model.decode(code, text, batch.mask))


def test_a_better_code_is_learned_through_the_noise():
    """The gradient reaches the encoder, which it could not if codes were drawn in any other way."""
    model, batch = VAE(CONFIG), World(16).batch(0, 2)
    torch.nn.init.normal_(model.to_code.weight, std=0.1)
    vae_loss(model, batch, generator(), VAELossConfig(kl_weight=0.0), 1.0).backward()
    assert model.to_code.weight.grad.abs().sum() > 0 and math.isfinite(model.to_code.weight.grad.sum())


@pytest.mark.parametrize("learned", [True, False])
def test_a_caption_moves_the_codes_only_where_the_prior_is_learned(learned):
    model, batch = VAE(replace(CONFIG, learned_prior=learned)), World(16).batch(0, 2)
    torch.nn.init.normal_(model.to_prior.weight)
    mean, log_variance = model.prior(model.text(batch.tokens, batch.mask)[0])
    assert (mean.abs().sum() > 0) == (log_variance.abs().sum() > 0) == learned
