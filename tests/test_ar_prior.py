"""The autoregressive prior: buckets and back, what sees what, the cache, and drawing from a distribution."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from minidalle import losses
from minidalle.ar_prior import AutoregressivePrior, AutoregressivePriorConfig, Cache, draw_bucket, extend
from minidalle.data.batches import World
from minidalle.layers import TextEncoding, Transformer
from minidalle.losses import AutoregressivePriorLossConfig, ar_prior_loss

CONFIG = AutoregressivePriorConfig(
    context_length=7, embed_dim=12, text_width=16, width=16, depth=2, num_heads=2, num_coordinates=5, num_buckets=9
)


def texts(batch: int = 3, length: int = 6) -> TextEncoding:
    mask = torch.arange(length) < torch.tensor([[length], [length - 2], [1]])[:batch]
    return TextEncoding(F.normalize(torch.randn(batch, 12), dim=-1), torch.randn(batch, length, 16), mask)


@pytest.fixture
def prior() -> AutoregressivePrior:
    prior = AutoregressivePrior(CONFIG).eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    prior.fit(*embeddings(200))
    return prior


def embeddings(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    mixed = torch.randn(number, 4) @ torch.randn(4, 12, generator=torch.Generator().manual_seed(3))
    return F.normalize(mixed + 1, dim=-1), F.normalize(torch.randn(number, 12), dim=-1)


def buckets(n: int, batch: int = 3) -> torch.Tensor:
    return torch.randint(9, (batch, n))


# Numbers


def test_the_axes_are_those_of_torch_and_the_ranges_hold_all_that_was_seen(prior):
    z_image, z_text = embeddings(300)
    prior.fit(z_image, z_text)
    centred = z_image - z_image.mean(0)
    expected = torch.linalg.svd(centred, full_matrices=False).Vh[:4].T
    torch.testing.assert_close((prior.axes[:, :4] * expected).sum(0).abs(), torch.ones(4), atol=1e-3, rtol=0)
    numbers = prior.numbers(z_image, z_text)
    torch.testing.assert_close(numbers[:, 0], (z_image * z_text).sum(1))
    found = prior.quantize(z_image, z_text)
    assert found.amin(0).tolist() == [0] * 6 and found.amax(0).tolist() == [8] * 6


def test_what_is_restored_is_off_by_half_a_bucket_at_most(prior):
    fine = AutoregressivePrior(replace(CONFIG, num_coordinates=12, num_buckets=4096))
    z_image, z_text = embeddings(300)
    fine.fit(z_image, z_text)
    torch.testing.assert_close(fine.restore(fine.quantize(z_image, z_text)), z_image, atol=1e-3, rtol=0)
    coarse = prior.restore(prior.quantize(z_image, z_text))
    torch.testing.assert_close(coarse.norm(dim=1), torch.ones(300))
    assert prior.quantize(coarse, z_text)[:, 1].sub(prior.quantize(z_image, z_text)[:, 1]).abs().max() <= 1


def test_numbers_beyond_the_range_fall_into_the_outer_buckets(prior):
    z_image, z_text = embeddings(10)
    assert prior.quantize(9 * z_image, z_text).max() <= 8 and prior.quantize(-9 * z_image, z_text).min() >= 0


def test_more_coordinates_than_there_are_dimensions_are_refused():
    with pytest.raises(ValueError, match="13 coordinates of a z_image of 12 cannot be kept"):
        AutoregressivePrior(replace(CONFIG, num_coordinates=13))


# What sees what


def test_a_bucket_is_predicted_from_the_caption_and_the_buckets_before_it(prior):
    text, given_ones = texts(), buckets(5)
    logits = prior(given_ones, text)
    assert logits.shape == (3, 6, 9)
    for place in range(5):
        other = given_ones.clone()
        other[:, place] = (other[:, place] + 1) % 9
        changed = (prior(other, text) - logits).abs().amax((0, 2)) > 1e-6
        assert changed.tolist() == [i > place for i in range(6)]


def test_each_caption_is_read_alone_and_padding_is_not_seen(prior):
    text, given_ones = texts(), buckets(5)
    longer = TextEncoding(text.z_text, F.pad(text.states, (0, 0, 0, 1), value=9.0), F.pad(text.mask, (0, 1)))
    torch.testing.assert_close(prior(given_ones, longer), prior(given_ones, text))
    for part in range(3):
        alone = TextEncoding(text.z_text[part, None], text.states[part, None], text.mask[part, None])
        torch.testing.assert_close(prior(given_ones[part, None], alone), prior(given_ones, text)[part, None])


def test_a_hidden_caption_is_one_and_the_same_whatever_it_says_and_however_long_it_is(prior):
    hide, given_ones = torch.tensor([True, True, True]), buckets(5, 1).expand(3, -1)
    hidden = prior(given_ones, texts(), hide)
    torch.testing.assert_close(hidden, hidden[:1].expand(3, -1, -1))
    shown = prior(given_ones, texts())
    assert (shown[0] - shown[1]).abs().max() > 1e-3


def test_a_hidden_bucket_is_not_seen(prior):
    text, given_ones, hide = texts(), buckets(5), torch.zeros(3, 5, dtype=torch.bool)
    hide[:, 2] = True
    logits, other = prior(given_ones, text, hide_buckets=hide), given_ones.clone()
    other[:, 2] = (other[:, 2] + 1) % 9
    torch.testing.assert_close(prior(other, text, hide_buckets=hide), logits)
    assert (prior(given_ones, text) - logits).abs().amax((0, 2)).gt(1e-6).tolist() == [i > 2 for i in range(6)]


# The cache


@pytest.mark.parametrize("parts", [[6], [1] * 6, [2, 3, 1]])
def test_a_row_in_parts_is_the_row_at_once(parts):
    transformer, row = Transformer(16, 2, 2), torch.randn(3, 6, 16)
    mask = torch.tensor([[True] * 6, [True, True, False, True, True, True], [True] + [False] * 3 + [True] * 2])
    whole = transformer(row, mask, causal=True)
    cache, pieces = Cache(), zip(row.split(parts, 1), mask.split(parts, 1), strict=True)
    torch.testing.assert_close(torch.cat([extend(transformer, x, m, cache) for x, m in pieces], 1), whole)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_sampling_with_a_cache_is_sampling_without(prior, scale):
    text, given_ones, cache = texts(), buckets(5), Cache()
    for n in range(6):
        with_cache = prior(given_ones[:, :n], text, cache=cache)
        assert with_cache.shape == (3, 1, 9)
        assert (with_cache[:, 0] - prior(given_ones[:, :n], text)[:, -1]).abs().max() < 1e-5
    uniform = torch.rand(3, 6)
    z_image = prior.sample(text, uniform, scale)
    assert (z_image - prior.sample(text, uniform, scale, cached=False)).abs().max() < 1e-5
    assert z_image.shape == (3, 12) and (z_image.norm(dim=1) - 1).abs().max() < 1e-5


# Drawing


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.floats(0, 1))
def test_a_bucket_is_where_the_distribution_reaches_the_share(logits, u):
    logits = torch.tensor([logits])
    bucket = draw_bucket(logits, torch.tensor([u]))
    shares = logits.double().softmax(-1)[0]
    assert 0 <= bucket.item() < len(shares)
    assert shares[: bucket.item()].sum() <= u + 1e-5 and shares[: bucket.item() + 1].sum() >= u - 1e-5


def test_buckets_come_as_often_as_the_logits_say():
    shares = torch.tensor([0.1, 0.0, 0.6, 0.3])
    drawn = draw_bucket(shares.log().expand(20_000, -1), torch.rand(20_000))
    torch.testing.assert_close(torch.bincount(drawn, minlength=4) / 20_000, shares, atol=0.02, rtol=0)


def test_dot_products_come_from_the_top_of_their_distribution(prior, monkeypatch):
    drawn = []
    monkeypatch.setattr("minidalle.ar_prior.draw_bucket", lambda logits, u: drawn.append(u) or buckets(1)[:, 0])
    uniform = torch.tensor([0.0, 0.5, 1.0])[:, None].expand(-1, 6)
    prior.sample(texts(), uniform)
    torch.testing.assert_close(drawn[0], torch.tensor([0.5, 0.75, 1.0]))
    assert all(torch.equal(u, uniform[:, 0]) for u in drawn[1:])


def test_guidance_pushes_the_logits_away_from_those_without_the_caption(prior):
    text, uniform, seen = texts(), torch.rand(3, 6), []
    hook = prior.register_forward_hook(lambda _, __, out: seen.append(out[:, -1].log_softmax(-1)))
    one, far = prior.sample(text, uniform, 1.0), prior.sample(text, uniform, 40.0)
    hook.remove()
    assert len(seen[0]) == 3 and len(seen[6]) == 6 and (one - far).abs().max() > 1e-3
    cond, uncond = seen[6].chunk(2)
    torch.testing.assert_close(cond, seen[0])
    first = draw_bucket(uncond + 40 * (cond - uncond), 0.5 + 0.5 * uniform[:, 0])
    assert torch.equal(first, prior_first(prior, text, uniform))


def prior_first(prior, text, uniform):
    kept = []
    hook = prior.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    prior.sample(text, uniform, 40.0)
    hook.remove()
    return kept[1][:3, 0]


# The loss


class Frozen:
    """A CLIP whose embeddings are known."""

    def __init__(self, z_image, text):
        self.z_image, self.text = z_image, text

    def encode_image(self, images):
        return self.z_image

    def encode_text(self, tokens, mask):
        return self.text


def test_the_loss_is_the_cross_entropy_of_every_bucket(prior):
    text, batch = texts(), World(16).batch(0, 3)
    clip, config = (
        Frozen(embeddings(3)[0], text),
        AutoregressivePriorLossConfig(p_drop_text=0.0, p_drop_buckets=0.0, blur=0.0),
    )
    loss = ar_prior_loss(prior, batch, torch.Generator(), config, clip)
    found = prior.quantize(clip.z_image, text.z_text)
    logits = prior(found[:, :-1], text)
    terms = [logits[b, i].log_softmax(-1)[found[b, i]] for b in range(3) for i in range(6)]
    torch.testing.assert_close(loss, -torch.stack(terms).mean())
    wrapped = torch.nn.Module()
    wrapped.module, wrapped.forward = prior, prior.forward
    torch.testing.assert_close(ar_prior_loss(wrapped, batch, torch.Generator(), config, clip), loss)


def test_blurred_answers_are_gaussians_around_the_right_bucket():
    blurred = losses.blurred_answers(torch.tensor([[4, 0]]), 9, 0.8)[0]
    torch.testing.assert_close(blurred.sum(1), torch.ones(2))
    assert blurred.argmax(1).tolist() == [4, 0]
    torch.testing.assert_close(blurred[0], blurred[0].flip(0))
    mean = (blurred[0] * torch.arange(9)).sum()
    variance = (blurred[0] * (torch.arange(9) - mean) ** 2).sum()
    assert abs(variance.sqrt() - 0.8) < 0.01
    sharp = losses.blurred_answers(torch.tensor([[4, 0]]), 9, 0.0)
    assert torch.equal(sharp, F.one_hot(torch.tensor([[4, 0]]), 9).float())


def test_captions_and_buckets_are_hidden_as_often_as_the_config_says(prior, monkeypatch):
    hidden, whole = [], prior.forward

    def watched(buckets, text, hide_text, hide_buckets):
        hidden.append((hide_text, hide_buckets))
        return whole(buckets, text, hide_text, hide_buckets=hide_buckets)

    monkeypatch.setattr(prior, "forward", watched)
    batch, clip = World(16).batch(0, 3), Frozen(embeddings(3)[0], texts())
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        ar_prior_loss(prior, batch, generator, AutoregressivePriorLossConfig(0.25, p_drop_buckets=0.6), clip)
    texts_hidden, buckets_hidden = (torch.cat(column) for column in zip(*hidden, strict=True))
    assert abs(texts_hidden.float().mean() - 0.25) < 0.05
    assert abs(buckets_hidden.float().mean() - 0.6 / 2) < 0.03  # a share of 0 to 1 of six in ten
    whole_rows = 1 - buckets_hidden.any(1).float().mean()
    assert 0.4 <= whole_rows < 0.55


def test_what_the_buckets_mean_is_not_trained(prior):
    names = {name for name, p in prior.named_parameters() if not p.requires_grad}
    assert names == {"mean", "axes", "low", "high"}
    assert losses.AutoregressivePriorLossConfig().p_drop_text == 0.1
