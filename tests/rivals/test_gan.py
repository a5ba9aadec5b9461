"""The conditional GAN: its losses by hand, its penalties in closed form, and who learns from which part of the sum."""

import copy
import math
import signal
from dataclasses import replace

import pytest
import torch
from conftest import MICRO
from torch import nn

from minidalle.checkpoint import load_model
from minidalle.clip import CLIP
from minidalle.data.batches import Batch, World
from minidalle.losses import draw_normal
from minidalle.rivals import gan
from minidalle.rivals.critic import contrast, mode_seeking, slopes
from minidalle.rivals.family import Rival
from minidalle.rivals.gan import (
    GAN,
    GANConfig,
    GANLossConfig,
    clip_as_critic_loss,
    critic_loss,
    gan_loss,
    penalty,
)
from minidalle.training import stages
from minidalle.training.loop import Stopped
from minidalle.training.run import train
from minidalle.training.stages import step_generator
from minidalle.world.captions import TOKENIZER

CONFIG = GANConfig(TOKENIZER.vocab_size, TOKENIZER.context_length, 16, 1, 2, image_size=16, code_dim=4, widths=(8, 8))
PLAIN = GANLossConfig(all_wrong=False, r1_weight=0.0, ma_weight=0.0)
RECIPE = gan.recipe(1, 0.9).loss
PENALISED = GANLossConfig(all_wrong=True, r1_weight=0.7, ma_weight=0.3, ma_power=2.0, penalized=0.5)
SMALL = replace(
    gan.FAMILY,
    models={"gan": replace(CONFIG, image_size=32)},
    recipes={"quick": {"gan": replace(gan.recipe(6, 0.9), batch_size=4)}},
)
TOKENS = torch.tensor([[1, 2], [1, 3], [1, 2]])  # the first and the last caption are the same


def batch(size: int = 4) -> Batch:
    return World(16, two_objects=0.0).batch(0, size)


def model_of(seed: int = 0) -> GAN:
    """Build a model in which nothing is zero."""
    torch.manual_seed(seed)
    model = GAN(CONFIG)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_the_hinge_by_hand():
    real = torch.tensor([[0.5, -3.0, 9.0], [0.2, 2.0, -0.4], [9.0, 0.0, -1.0]])
    fake = torch.tensor([-2.0, 0.0, 0.5])
    right, drawn = (0.5 + 0.0 + 2.0) / 3, (0.0 + 1.0 + 1.5) / 3
    # wrong are (0, 1), (1, 0), (1, 2), (2, 1); the nines stand where the words are the same
    everyone = (0.0 + 1.2 + 0.6 + 1.0) / 4
    torch.testing.assert_close(critic_loss(real, fake, TOKENS, True), torch.tensor(right + (drawn + everyone) / 2))
    # of the picture before: (0, 2) has the same words, (1, 0) and (2, 1) are wrong
    before = (1.2 + 1.0) / 2
    torch.testing.assert_close(critic_loss(real, fake, TOKENS, False), torch.tensor(right + (drawn + before) / 2))


@pytest.mark.parametrize("all_wrong", [True, False])
def test_captions_that_are_all_the_same_are_never_wrong(all_wrong):
    loss = critic_loss(torch.full((3, 3), 5.0), torch.full((3,), -5.0), TOKENS[:1].expand(3, -1), all_wrong)
    assert loss == 0


class Linear(nn.Module):
    """The score w . picture + v . caption, whose slopes are w and v everywhere."""

    def __init__(self, pixels: int, width: int):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(pixels)), nn.Parameter(torch.randn(width))

    def forward(self, images, emb):
        return (images.flatten(1) @ self.w)[:, None] + emb @ self.v


class Quadratic(nn.Module):
    """The score x A x / 2 of a picture x, whose slope is (A + A') x / 2; captions do not count."""

    def __init__(self, pixels: int):
        super().__init__()
        self.a = nn.Parameter(torch.randn(pixels, pixels))

    def forward(self, images, emb):
        x = images.flatten(1)
        return ((x @ self.a) * x).sum(1)[:, None] / 2 + 0 * emb.sum(1)


def test_penalties_of_a_linear_critic_are_its_norms():
    critic = Linear(12, 5)
    by_image, by_caption = slopes(critic, torch.randn(3, 3, 2, 2), torch.randn(3, 5))
    torch.testing.assert_close(by_image.flatten(1), critic.w.expand(3, -1))
    torch.testing.assert_close(by_caption, critic.v.expand(3, -1))
    r1 = penalty(by_image, by_caption, GANLossConfig(r1_weight=3.0, ma_weight=0.0))
    torch.testing.assert_close(r1, 1.5 * critic.w.square().sum())
    (found,) = torch.autograd.grad(r1, critic.w, retain_graph=True)
    torch.testing.assert_close(found, 3.0 * critic.w)
    both = penalty(by_image, by_caption, GANLossConfig(r1_weight=0.0, ma_weight=2.0, ma_power=6.0))
    torch.testing.assert_close(both, 2.0 * (critic.w.norm() + critic.v.norm()) ** 6)


def test_r1_of_a_quadratic_critic_and_its_own_gradient_in_closed_form():
    critic, images = Quadratic(12), torch.randn(3, 3, 2, 2)
    x, gamma = images.flatten(1), 0.8
    symmetric = (critic.a.detach() + critic.a.detach().T) / 2
    r1 = penalty(*slopes(critic, images, torch.randn(3, 5)), GANLossConfig(r1_weight=gamma, ma_weight=0.0))
    torch.testing.assert_close(r1, gamma / 2 * (x @ symmetric).square().sum(1).mean())
    r1.backward()
    outer = (x @ symmetric).T @ x / 3
    torch.testing.assert_close(critic.a.grad, gamma * (outer + outer.T) / 2)


def test_r1_of_the_critic_is_that_of_each_picture_by_itself_and_of_finite_differences():
    critic, b = model_of().critic, batch(3)
    emb = critic.text(b.tokens, b.mask)[0].detach()
    by_image, by_caption = slopes(critic, b.images, emb)
    critic.double()
    for i in range(3):
        image, caption = b.images[i : i + 1].double().requires_grad_(), emb[i : i + 1].double().requires_grad_()
        alone = torch.autograd.grad(critic(image, caption), (image, caption))
        torch.testing.assert_close(by_image[i].double(), alone[0][0], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(by_caption[i].double(), alone[1][0], rtol=1e-3, atol=1e-5)
        direction = torch.randn_like(image)
        ahead, behind = (critic((image + h * direction).detach(), caption) for h in (1e-6, -1e-6))
        slope = (ahead - behind).squeeze() / 2e-6
        torch.testing.assert_close(slope, (alone[0] * direction).sum(), rtol=1e-4, atol=1e-6)


def test_the_critic_alone_learns_from_the_penalty():
    model, b = model_of(), batch()
    emb, _ = model.critic.text(b.tokens, b.mask)
    penalty(*slopes(model.critic, b.images, emb), PENALISED).backward()
    learns = {name for name, grad in gradients(model).items() if grad is not None and grad.any()}
    assert {name.split(".")[0] for name in learns} == {"critic"} and not any("text" in name for name in learns)
    assert {"critic.trunk.1.weight", "critic.fitting.weight"} <= learns


def test_neither_network_has_a_gradient_from_the_other_ones_loss():
    b, code = batch(), torch.randn(4, CONFIG.code_dim)
    for of_critic in (True, False):
        model = model_of()
        said = torch.tensor([0, 1, 0, 1])
        real, fake, judged, *found = model(b.images, b.tokens, b.mask, code, said, 2)
        if of_critic:
            loss = critic_loss(real, fake.diagonal(), b.tokens, True) + penalty(*found, PENALISED)
            loss = loss + contrast(real, torch.arange(4), b.tokens)
        else:
            loss = contrast(judged, said, b.tokens) - judged.mean() + mode_seeking(judged, code)
        loss.backward()
        own, other = (model.critic, model.generator) if of_critic else (model.generator, model.critic)
        assert all(grad is None for grad in gradients(other).values())
        assert all(grad is not None and grad.any() for grad in gradients(own).values())


@pytest.mark.parametrize("config", [PLAIN, PENALISED, RECIPE])
def test_one_backward_pass_equals_two_separate_ones(config):
    b, together, apart = batch(), model_of(), model_of()
    gan_loss(together, b, step_generator(0, 0), config).backward()

    code = draw_normal(torch.empty(4, CONFIG.code_dim), step_generator(0, 0))
    said = torch.tensor([0, 1, 0, 1] if config.mode_seeking else [0, 1, 2, 3])
    generator, critic = apart.generator, apart.critic
    with torch.no_grad():
        emb, drawn = critic.text(b.tokens, b.mask)[0], generator(b.tokens[said], b.mask[said], code)
    critic.requires_grad_(False)
    pictures = generator(b.tokens[said], b.mask[said], code)
    scores = critic(pictures, emb)
    loss = -scores[torch.arange(4), said].mean() + config.contrast * contrast(scores, said, b.tokens)
    (loss + config.mode_seeking * mode_seeking(scores, code)).backward()
    critic.requires_grad_(True)
    emb = critic.text(b.tokens, b.mask)[0]
    real, fake = critic(b.images, emb), critic(drawn, emb)[torch.arange(4), said]
    loss = critic_loss(real, fake, b.tokens, config.all_wrong)
    loss = loss + config.contrast * contrast(real, torch.arange(4), b.tokens)
    rows = round(4 * config.penalized)
    (loss + penalty(*slopes(critic, b.images[:rows], emb[:rows]), config)).backward()
    for name, grad in gradients(apart).items():
        torch.testing.assert_close(gradients(together)[name], grad, msg=name)


def test_the_contrast_by_hand():
    scores, said = torch.tensor([[0.5, 0.1, 9.0], [0.2, 1.0, -0.4], [9.0, 0.3, -1.0]]), torch.tensor([0, 1, 2])
    rows = [(0.5, [0.1]), (1.0, [0.2, -0.4]), (-1.0, [0.3])]  # the nines stand where the words are the same
    expected = [math.log(1 + sum(math.exp(3 * (other - own)) for other in others)) for own, others in rows]
    torch.testing.assert_close(contrast(scores, said, TOKENS), torch.tensor(sum(expected) / 3))


def test_a_drawn_picture_is_compared_with_the_caption_it_was_drawn_for():
    scores = torch.tensor([[0.0, 2.0, 1.0], [1.0, 2.0, 0.0], [0.0, 2.0, 1.0]])
    right, wrong = (contrast(scores, torch.full((3,), row), TOKENS) for row in (1, 0))
    assert right < 0.1 < 3 < wrong


@pytest.mark.parametrize("size", [4, 5])
def test_mode_seeking_by_hand(size):
    scores, half = torch.randn(size, size), (size + 1) // 2
    code = torch.arange(size)[:, None].expand(-1, 2).float()  # pairs lie half apart
    read = [(row - row.mean()) / row.std(correction=0) for row in scores]
    apart = torch.stack([(read[i] - read[i + half]).abs().mean() for i in range(size - half)])
    torch.testing.assert_close(mode_seeking(scores, code), half / apart.mean(), rtol=1e-3, atol=0)


def test_looking_more_real_is_no_other_mode():
    alike, code = torch.randn(1, 4).expand(4, -1), torch.randn(4, 2)
    shifted = alike + torch.tensor([[0.0], [0.0], [3.0], [-5.0]])
    assert mode_seeking(shifted, code) > 1e4 > 10 > mode_seeking(torch.randn(4, 4), code)


def test_a_wrapped_model_has_the_same_loss_and_gradients():
    class Wrapped(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.inner = model

        def forward(self, *args):
            return self.inner(*args)

    plain, other = model_of(), model_of()
    losses = [gan_loss(m, batch(), step_generator(0, 0), RECIPE) for m in (plain, Wrapped(other))]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    assert all(torch.equal(grad, gradients(other)[name]) for name, grad in gradients(plain).items())


def test_slopes_are_taken_in_full_precision():
    model, b = model_of(), batch()
    emb = model.critic.text(b.tokens, b.mask)[0]
    expected = slopes(model.critic, b.images, emb)
    with torch.autocast("cpu", torch.bfloat16):
        found = slopes(model.critic, b.images, emb)
        loss = gan_loss(model, b, step_generator(0, 0), PENALISED)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    loss.backward()
    assert all(grad.isfinite().all() for grad in gradients(model).values())


def test_the_critic_reads_each_picture_with_each_caption():
    critic, b = model_of().critic, batch()
    emb, _ = critic.text(b.tokens, b.mask)
    scores = critic(b.images, emb)
    assert scores.shape == (4, 4) and scores.std(1).min() > 1e-3 and scores.std(0).min() > 1e-3
    for i, j in ((0, 0), (1, 3), (2, 0)):
        torch.testing.assert_close(scores[i, j], critic(b.images[i : i + 1], emb[j : j + 1])[0, 0])


def test_noise_and_caption_both_change_what_is_drawn():
    generator, b = model_of().generator, batch()
    code = torch.randn(4, CONFIG.code_dim)
    drawn = generator(b.tokens, b.mask, code)
    assert drawn.shape == b.images.shape and drawn.abs().max() <= 1
    assert (generator(b.tokens, b.mask, code.flip(0)) - drawn).abs().max() > 1e-2
    assert (generator(b.tokens.flip(0), b.mask.flip(0), code) - drawn).abs().max() > 1e-2


def test_a_picture_is_the_same_alone_and_in_a_batch():
    rival = Rival(SMALL, {"gan": model_of()}, TOKENIZER)
    seeds = lambda *numbers: [torch.Generator().manual_seed(number) for number in numbers]  # noqa: E731
    both = rival(["a red circle", "a blue ring at the top"], generator=seeds(3, 4)).tensor
    torch.testing.assert_close(both[1:], rival("a blue ring at the top", generator=seeds(4)).tensor, rtol=0, atol=1e-5)
    several = rival("a red circle", num_images_per_prompt=2, generator=seeds(3, 5)).tensor
    torch.testing.assert_close(several[0], both[0], rtol=0, atol=1e-5)
    assert (several[0] - several[1]).abs().max() > 1e-2


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    train(SMALL.preset(), "quick", tmp_path / "whole", ("gan",))
    plain = stages.StageLoss.__call__

    def interrupted(self, model, step):
        if step == 3:
            signal.raise_signal(signal.SIGINT)
        return plain(self, model, step)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(stages.StageLoss, "__call__", interrupted)
        train(SMALL.preset(), "quick", tmp_path / "parts", ("gan",))
    train(SMALL.preset(), "quick", tmp_path / "parts", ("gan",), resume=True)
    whole, parts = (load_model(GAN, tmp_path / name)[0].state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_both_networks_learn_within_a_few_steps():
    model = model_of()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for step in range(2):
        optimizer.zero_grad()
        gan_loss(model, batch(), step_generator(0, step), PENALISED).backward()
        optimizer.step()
    assert all((value != before[name]).any() for name, value in model.state_dict().items())


def test_the_plain_loss_takes_a_batch_of_one():
    assert gan_loss(model_of(), batch(1), step_generator(0, 0), PLAIN).isfinite()


def test_clip_as_the_critic_is_the_negative_cosine_and_reaches_the_generator_alone():
    torch.manual_seed(1)
    clip, model, b = CLIP(MICRO.models["clip"]).requires_grad_(False), model_of(), batch()
    loss = clip_as_critic_loss(model, b, step_generator(0, 0), None, clip)
    drawn = model.generator(b.tokens, b.mask, draw_normal(torch.empty(4, CONFIG.code_dim), step_generator(0, 0)))
    cosine = torch.cosine_similarity(clip.encode_image(drawn), clip.encode_text(b.tokens, b.mask).z_text)
    torch.testing.assert_close(loss, -cosine.mean())
    loss.backward()
    learns = {name.split(".")[0] for name, grad in gradients(model).items() if grad is not None}
    assert learns == {"generator"} and all(p.grad is None for p in clip.parameters())
