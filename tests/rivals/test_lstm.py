"""The LSTM baseline: a squared error has its least at the mean, and one caption has one picture, whatever the seed."""

import signal
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minidalle.checkpoint import load_model
from minidalle.data.batches import Batch, World
from minidalle.rivals import lstm
from minidalle.rivals.family import Rival
from minidalle.rivals.lstm import LSTMConfig, LSTMLossConfig, LSTMPainter, lstm_loss
from minidalle.training import stages
from minidalle.training.loop import Stopped, fit
from minidalle.training.recipes import StageRecipe
from minidalle.training.run import train
from minidalle.world.captions import TOKENIZER

CONFIG = LSTMConfig(TOKENIZER.vocab_size, text_width=8, image_size=16, decoder_widths=(8, 8), encoder_widths=(4, 4))
SMALL = replace(
    lstm.FAMILY,
    models={"lstm": replace(CONFIG, image_size=32, decoder_widths=(8, 8, 8), encoder_widths=(4, 4, 4))},
    recipes={"quick": {"lstm": replace(lstm.recipe(6, 0.9), batch_size=4)}},
)


def batch(size: int = 4) -> Batch:
    return World(16, two_objects=0.0).batch(0, size)


def test_the_plain_loss_is_the_squared_error_of_what_the_caption_draws():
    model, b = LSTMPainter(CONFIG), batch()
    expected = (model.draw(b.tokens, b.mask) - b.images).square().sum() / b.images.numel()
    torch.testing.assert_close(lstm_loss(model, b, torch.Generator(), LSTMLossConfig()), expected)


def test_the_plain_loss_leaves_the_encoder_of_pictures_alone():
    model, b = LSTMPainter(CONFIG), batch()
    lstm_loss(model, b, torch.Generator(), LSTMLossConfig()).backward()
    assert all(not p.grad.any() for p in model.encoder.parameters())
    assert all(p.grad.any() for part in (model.text.lstm, model.decoder) for p in part.parameters())


def test_the_feature_loss_draws_pictures_again_and_pulls_the_caption_to_the_picture_but_not_back():
    model, b = LSTMPainter(CONFIG), batch()
    said, seen = model.text(b.tokens, b.mask), model.encoder(b.images)
    pull, redrawn = F.mse_loss(said, seen.detach()), F.mse_loss(model.decoder(seen), b.images)
    plain = F.mse_loss(model.decoder(said), b.images)
    loss = lstm_loss(model, b, torch.Generator(), LSTMLossConfig(feature_weight=0.3))
    torch.testing.assert_close(loss, plain + 0.3 * (pull + redrawn))
    for parameters, parts in ((model.encoder, redrawn), (model.text, plain + 0.3 * pull)):
        scale = 0.3 if parts is redrawn else 1.0
        own = torch.autograd.grad(scale * parts, list(parameters.parameters()), retain_graph=True)
        found = torch.autograd.grad(loss, list(parameters.parameters()), retain_graph=True)
        for one, other in zip(own, found, strict=True):
            torch.testing.assert_close(one, other)


def test_two_pictures_of_one_caption_are_drawn_as_their_mean():
    """The loss of a decoder that can draw anything is stationary at the mean, and grows by the distance to it."""
    b = batch(2)
    b = replace(b, tokens=b.tokens[:1].expand(2, -1), mask=b.mask[:1].expand(2, -1))
    mean, spread = b.images.mean(0), b.images.var(0, correction=0).mean()

    class Picture(nn.Module):
        def __init__(self, start: torch.Tensor):
            super().__init__()
            self.picture = nn.Parameter(start)

        def forward(self, images, tokens, mask):
            return self.picture.expand_as(images), images, torch.zeros(len(images), 1), torch.zeros(len(images), 1)

    for distance in (0.0, 0.5):
        model = Picture(mean + distance)
        loss = lstm_loss(model, b, torch.Generator(), LSTMLossConfig())
        torch.testing.assert_close(loss.detach(), spread + distance**2)
        loss.backward()
        torch.testing.assert_close(model.picture.grad, torch.full_like(mean, 2 * distance / mean.numel()))


def test_training_ends_at_the_mean_of_two_pictures():
    b = batch(2)
    b = replace(b, tokens=b.tokens[:1].expand(2, -1), mask=b.mask[:1].expand(2, -1))
    recipe = StageRecipe(200, 2, matrix_lr=0.02, lr=1e-2, ema_decay=0.9, loss=LSTMLossConfig())
    model = fit(LSTMPainter(CONFIG), lambda m, _: lstm_loss(m, b, None, recipe.loss), recipe, progress=False)
    drawn, mean = model.draw(b.tokens[:1], b.mask[:1])[0], b.images.mean(0)
    assert (drawn - mean).square().mean() < 0.02 * (b.images[0] - mean).square().mean()


def test_every_seed_draws_the_same_picture_and_no_noise_is_drawn():
    rival = Rival(SMALL, {"lstm": LSTMPainter(CONFIG)}, TOKENIZER)
    seeds = [torch.Generator().manual_seed(seed) for seed in range(3)]
    drawn = rival("a red circle", num_images_per_prompt=3, generator=seeds).tensor
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])
    assert torch.equal(seeds[0].get_state(), torch.Generator().manual_seed(0).get_state())


@given(length=st.integers(1, 6), padding=st.integers(0, 4), filling=st.integers(0, TOKENIZER.vocab_size - 1))
def test_padding_does_not_matter(length, padding, filling):
    text, tokens = LSTMPainter(CONFIG).text, torch.randint(TOKENIZER.vocab_size, (2, length))
    padded = F.pad(tokens, (0, padding), value=filling)
    mask = torch.arange(length + padding).expand(2, -1) < length
    expected = text.lstm(text.words(tokens))[1][0][0]  # the last state that the LSTM itself gives
    torch.testing.assert_close(text(padded, mask), expected)


def test_the_state_is_that_of_each_rows_own_end():
    text, tokens = LSTMPainter(CONFIG).text, torch.randint(TOKENIZER.vocab_size, (3, 5))
    lengths = torch.tensor([2, 5, 3])
    found = text(tokens, torch.arange(5) < lengths[:, None])
    for row, length in enumerate(lengths):
        alone = text(tokens[row : row + 1, :length], torch.ones(1, length, dtype=torch.bool))
        torch.testing.assert_close(found[row : row + 1], alone)


def test_the_order_of_words_matters():
    text, tokens = LSTMPainter(CONFIG).text, torch.tensor([[3, 4, 5]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert (text(tokens, mask) - text(tokens.flip(1), mask)).abs().max() > 1e-3


@pytest.mark.parametrize("size", [16, 32])
def test_pictures_have_the_size_that_was_asked_for(size):
    widths = (8,) * (2 if size == 16 else 3)
    model = LSTMPainter(replace(CONFIG, image_size=size, decoder_widths=widths, encoder_widths=widths))
    b = World(size).batch(0, 2)
    drawn, redrawn, said, seen = model(b.images, b.tokens, b.mask)
    assert drawn.shape == redrawn.shape == b.images.shape and said.shape == seen.shape == (2, 8)


@pytest.mark.parametrize("field", ["decoder_widths", "encoder_widths"])
def test_levels_that_do_not_fit_the_pictures_are_refused(field):
    with pytest.raises(ValueError, match=r"pictures of .* pixels, not of 32"):
        replace(LSTMConfig(), **{field: (8, 8)})


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    train(SMALL.preset(), "quick", tmp_path / "whole", ("lstm",))
    plain = stages.StageLoss.__call__

    def interrupted(self, model, step):
        if step == 3:
            signal.raise_signal(signal.SIGINT)
        return plain(self, model, step)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(stages.StageLoss, "__call__", interrupted)
        train(SMALL.preset(), "quick", tmp_path / "parts", ("lstm",))
    train(SMALL.preset(), "quick", tmp_path / "parts", ("lstm",), resume=True)
    whole, parts = (load_model(LSTMPainter, tmp_path / name)[0].state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert any((value != LSTMPainter(CONFIG).state_dict()[name]).any() for name, value in whole.items())
