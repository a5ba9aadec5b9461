"""CLIP: the loss against a plain loop, and towers that see all they should and nothing more."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle.clip import CLIP, MAX_LOGIT_SCALE, CLIPConfig, contrastive_loss
from minidalle.data.batches import World
from minidalle.training.optim import Muon, split_parameters
from minidalle.world.captions import TOKENIZER

CONFIG = CLIPConfig(
    TOKENIZER.vocab_size,
    TOKENIZER.context_length,
    image_size=16,
    patch_size=4,
    embed_dim=8,
    width=16,
    image_depth=1,
    text_depth=1,
    num_heads=2,
)
LONGEST = " ".join(["red"] * (TOKENIZER.context_length - 1))
CAPTIONS = ["", "red", "a red circle", "a small blue square above a ring"]


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def tokens_of(*numbers: int) -> torch.Tensor:
    """Make captions of three tokens; equal numbers give equal captions."""
    return torch.tensor([[2, number + 2, 1] for number in numbers])


def loss_by_hand(z_image: torch.Tensor, z_text: torch.Tensor, scale: float, tokens: torch.Tensor) -> float:
    """Score a batch with loops, leaving out the duplicates of a caption among its negatives."""
    total, number = 0.0, len(tokens)
    for anchors, others in ((z_image, z_text), (z_text, z_image)):
        for i in range(number):
            rivals = [j for j in range(number) if j == i or tokens[i].tolist() != tokens[j].tolist()]
            logits = [scale * float(anchors[i] @ others[j]) for j in rivals]
            total += math.log(sum(math.exp(x) for x in logits)) - logits[rivals.index(i)]
    return total / (2 * number)


def test_embeddings_lie_on_the_unit_sphere():
    clip = CLIP(CONFIG)
    z_image = clip.encode_image(torch.rand(3, 3, 16, 16) * 2 - 1)
    tokens, mask = TOKENIZER.encode(CAPTIONS)
    text = clip.encode_text(tokens, mask)
    assert z_image.shape == (3, 8) and text.z_text.shape == (4, 8) and text.states.shape == (4, 8, 16)
    assert torch.equal(text.mask, mask)
    torch.testing.assert_close(z_image.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(text.z_text.norm(dim=1), torch.ones(4))


def test_its_output_is_both_embeddings_and_the_scale_of_their_cosines():
    clip, images, (tokens, mask) = CLIP(CONFIG), torch.rand(4, 3, 16, 16) * 2 - 1, TOKENIZER.encode(CAPTIONS)
    z_image, z_text, scale = clip(images, tokens, mask)
    torch.testing.assert_close(z_image, clip.encode_image(images))
    torch.testing.assert_close(z_text, clip.encode_text(tokens, mask).z_text)
    assert scale.item() == pytest.approx(1 / 0.07)


def test_loss_without_duplicates_is_the_papers():
    z_image, z_text, scale = unit(6, 8), unit(6, 8), torch.tensor(4.5)
    logits, labels = scale * z_image @ z_text.T, torch.arange(6)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(contrastive_loss(z_image, z_text, scale, tokens_of(*range(6))), expected)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=7), st.floats(0.3, 60))
@settings(max_examples=30)
def test_duplicates_are_not_negatives(numbers, scale):
    z_image, z_text, tokens = unit(len(numbers), 8), unit(len(numbers), 8), tokens_of(*numbers)
    found = contrastive_loss(z_image, z_text, torch.tensor(scale), tokens)
    assert found.item() == pytest.approx(loss_by_hand(z_image, z_text, scale, tokens), abs=1e-4)


def test_the_picture_of_a_duplicate_gets_no_gradient_from_it():
    z_image, z_text = unit(2, 8).requires_grad_(), unit(2, 8)
    contrastive_loss(z_image, z_text, torch.tensor(1.0), tokens_of(0, 0)).backward()
    assert not z_image.grad.any()


@pytest.mark.parametrize("number", [2, 5, 64])
def test_embeddings_that_know_nothing_score_ln_of_the_batch(number):
    z = unit(1, 8).expand(number, 8)
    assert contrastive_loss(z, z, torch.tensor(2.0), tokens_of(*range(number))).item() == pytest.approx(
        math.log(number)
    )


def test_temperature_starts_where_the_paper_says_and_is_learned():
    clip, (tokens, mask) = CLIP(CONFIG), TOKENIZER.encode(CAPTIONS)
    assert clip.logit_scale.item() == pytest.approx(math.log(1 / 0.07)) and clip.logit_scale.requires_grad
    contrastive_loss(*clip(torch.randn(4, 3, 16, 16), tokens, mask), tokens).backward()
    assert clip.logit_scale.grad.abs() > 0


@pytest.mark.parametrize("above", [0.1, 5.0])
def test_cosines_are_never_scaled_by_more_than_a_hundred(above):
    clip, (tokens, mask) = CLIP(CONFIG), TOKENIZER.encode(CAPTIONS)
    clip.logit_scale.data.fill_(MAX_LOGIT_SCALE + above)
    *_, scale = clip(torch.randn(4, 3, 16, 16), tokens, mask)
    scale.backward()
    assert scale.item() == pytest.approx(100, rel=1e-5) and clip.logit_scale.grad == 0


def test_no_word_changes_the_state_of_an_earlier_one():
    tower, (tokens, mask) = CLIP(CONFIG).text_tower, TOKENIZER.encode([CAPTIONS[-1]])
    before = tower(tokens, mask).states
    for n in range(tokens.shape[1] - 1):
        changed = tokens.clone()
        changed[0, n] = 3 if tokens[0, n] != 3 else 4
        after = tower(changed, mask).states
        torch.testing.assert_close(after[:, :n], before[:, :n])
        assert not torch.allclose(after[:, n], before[:, n])


def test_z_text_is_read_at_the_end_token():
    tower = CLIP(CONFIG).text_tower
    text = tower(*TOKENIZER.encode(CAPTIONS))
    ends = torch.stack([state[len(caption.split())] for state, caption in zip(text.states, CAPTIONS, strict=True)])
    torch.testing.assert_close(text.z_text, F.normalize(ends @ tower.to_z_text.weight.T, dim=-1))


def test_padding_changes_nothing():
    clip = CLIP(CONFIG)
    z_text = clip.encode_text(*TOKENIZER.encode(CAPTIONS)).z_text
    alone = torch.cat([clip.encode_text(*TOKENIZER.encode([caption])).z_text for caption in CAPTIONS])
    torch.testing.assert_close(alone, z_text)


def test_the_order_of_words_and_the_place_of_a_patch_count():
    clip = CLIP(CONFIG)
    one, other = clip.encode_text(*TOKENIZER.encode(["red blue circle", "blue red circle"])).z_text
    assert (one - other).abs().max() > 1e-3
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    moved = clip.encode_image(images.roll((4, 8), (2, 3)))  # whole patches
    assert (clip.encode_image(images) - moved).abs().max() > 1e-3


def test_every_parameter_gets_a_gradient():
    """Positions too, of every place that a caption of this length and a picture have."""
    clip, (tokens, mask) = CLIP(CONFIG), TOKENIZER.encode([LONGEST, *CAPTIONS[1:]])
    contrastive_loss(*clip(torch.randn(4, 3, 16, 16), tokens, mask), tokens).backward()
    assert [name for name, p in clip.named_parameters() if p.grad is None or not p.grad.any()] == []
    for tower in (clip.image_tower, clip.text_tower):
        assert tower.positions.grad.any(1).all()


def test_batches_are_their_members_one_by_one():
    clip, images = CLIP(CONFIG), torch.rand(3, 3, 16, 16) * 2 - 1
    one_by_one = torch.cat([clip.encode_image(image[None]) for image in images])
    torch.testing.assert_close(clip.encode_image(images), one_by_one)


@pytest.mark.parametrize("size,patch", [(16, 4), (16, 8), (24, 12), (32, 16), (32, 32)])
def test_patches_of_several_sizes_tile_a_picture(size, patch):
    clip = CLIP(replace(CONFIG, image_size=size, patch_size=patch))
    assert clip.encode_image(torch.zeros(2, 3, size, size)).shape == (2, 8)


@pytest.mark.parametrize("patch", [3, 6, 12, 64])
def test_patches_that_do_not_tile_are_refused(patch):
    with pytest.raises(ValueError, match=f"Patches of {patch} pixels do not tile a picture of 32"):
        CLIPConfig(image_size=32, patch_size=patch)


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 1, 16, 16), (1, 3, 16, 8), (3, 16, 16)])
def test_a_picture_of_the_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"reads pictures of shape \(3, 16, 16\)"):
        CLIP(CONFIG).encode_image(torch.zeros(shape))


def test_it_learns_a_batch_by_heart():
    batch, clip = World(image_size=16).batch(0, 16), CLIP(CONFIG)
    matrices, others = split_parameters(clip)
    optimizers = [Muon(matrices, 0.02), torch.optim.AdamW(others, 2e-3)]
    for _ in range(60):
        z_image, z_text, scale = clip(batch.images, batch.tokens, batch.mask)
        loss = contrastive_loss(z_image, z_text, scale, batch.tokens)
        clip.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    assert loss < 0.2
    found = [batch.captions[i] for i in (z_image @ z_text.T).argmax(1)]
    assert sum(f == c for f, c in zip(found, batch.captions, strict=True)) >= 15
