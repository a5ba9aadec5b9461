"""The shared layers, against PyTorch's own and against the formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minidalle.layers import (
    Attention,
    TextEncoding,
    Transformer,
    attend,
    scale_embedding,
    timestep_embedding,
    zero_init,
)

B, N, L, WIDTH, CONTEXT_WIDTH, HEADS = 3, 5, 7, 12, 8, 3
MASK = torch.arange(L) < torch.tensor([[1], [4], [L]])  # (B, L)
FUTURE = torch.ones(N, N, dtype=torch.bool).triu(1)


def of_pytorch(attention: Attention, context_width: int) -> nn.MultiheadAttention:
    """Build PyTorch's attention with the same weights."""
    other = nn.MultiheadAttention(WIDTH, HEADS, kdim=context_width, vdim=context_width, batch_first=True)
    to_k, to_v = attention.to_kv.weight.chunk(2)
    with torch.no_grad():
        if context_width == WIDTH:
            other.in_proj_weight.copy_(torch.cat([attention.to_q.weight, to_k, to_v]))
        else:
            other.q_proj_weight.copy_(attention.to_q.weight)
            other.k_proj_weight.copy_(to_k)
            other.v_proj_weight.copy_(to_v)
        other.in_proj_bias.zero_()
        other.out_proj.load_state_dict(attention.to_out.state_dict())
    return other


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_self_attention_equals_pytorchs(causal, masked):
    attention, x = Attention(WIDTH, HEADS), torch.randn(B, N, WIDTH)
    mask = MASK[:, :N] if masked else None
    hidden = {"key_padding_mask": None if mask is None else ~mask, "attn_mask": FUTURE if causal else None}
    expected, _ = of_pytorch(attention, WIDTH)(x, x, x, need_weights=False, **hidden)
    torch.testing.assert_close(attention(x, mask=mask, causal=causal), expected)


@pytest.mark.parametrize("masked", [False, True])
def test_cross_attention_equals_pytorchs(masked):
    attention = Attention(WIDTH, HEADS, CONTEXT_WIDTH)
    x, context = torch.randn(B, N, WIDTH), torch.randn(B, L, CONTEXT_WIDTH)
    hidden = ~MASK if masked else None
    expected, _ = of_pytorch(attention, CONTEXT_WIDTH)(x, context, context, hidden, need_weights=False)
    torch.testing.assert_close(attention(x, context, MASK if masked else None), expected)


def test_one_head_is_scaled_dot_product_attention():
    attention, x = Attention(WIDTH, 1), torch.randn(B, N, WIDTH)
    k, v = attention.to_kv(x).chunk(2, dim=-1)
    expected = F.scaled_dot_product_attention(attention.to_q(x), k, v, is_causal=True)
    torch.testing.assert_close(attention(x, causal=True), attention.to_out(expected))


def test_what_is_masked_changes_nothing():
    attention = Attention(WIDTH, HEADS, CONTEXT_WIDTH)
    x, context = torch.randn(B, N, WIDTH), torch.randn(B, L, CONTEXT_WIDTH)
    other = torch.where(MASK[..., None], context, torch.randn_like(context))
    assert torch.equal(attention(x, context, MASK), attention(x, other, MASK))
    assert not torch.allclose(attention(x, context), attention(x, other))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="width 12 cannot be split into 5 heads"):
        Attention(12, 5)


def test_no_later_token_changes_an_earlier_output():
    transformer, x = Transformer(WIDTH, 2, HEADS), torch.randn(1, N, WIDTH)
    before = transformer(x, causal=True)
    for n in range(N):
        changed = x.clone()
        changed[:, n] += 1 + torch.randn(WIDTH)
        after = transformer(changed, causal=True)
        torch.testing.assert_close(after[:, :n], before[:, :n])
        assert (after[:, n:] - before[:, n:]).abs().amax(-1).min() > 1e-4  # every later output has seen it


def test_without_order_a_transformer_permutes_with_its_tokens():
    transformer, x, order = Transformer(WIDTH, 2, HEADS), torch.randn(B, N, WIDTH), torch.randperm(N)
    torch.testing.assert_close(transformer(x[:, order]), transformer(x)[:, order])


def test_a_transformers_mask_hides_tokens_from_all_others():
    transformer, x, mask = Transformer(WIDTH, 2, HEADS), torch.randn(B, N, WIDTH), MASK[:, :N]
    other = torch.where(mask[..., None], x, torch.randn_like(x))
    torch.testing.assert_close(transformer(x, mask)[mask], transformer(other, mask)[mask])


@pytest.mark.parametrize("dim", [2, 8, 128])
def test_timesteps_become_cosines_and_sines(dim):
    for t in (0, 1, 17, 999):
        angles = [t * 10_000 ** (-i / (dim // 2)) for i in range(dim // 2)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        found = timestep_embedding(torch.tensor([t]), dim)
        torch.testing.assert_close(found, torch.tensor([expected]), rtol=0, atol=1e-4)


def test_all_timesteps_are_told_apart():
    embedded = timestep_embedding(torch.arange(1000), 128)
    assert embedded.shape == (1000, 128) and embedded.dtype == torch.float32
    assert torch.pdist(embedded).min() > 0.1


def test_timesteps_of_any_shape_are_embedded_alike():
    t = torch.randint(1000, (3, 4))
    assert torch.equal(timestep_embedding(t, 16), timestep_embedding(t.flatten(), 16).view(3, 4, 16))


@pytest.mark.parametrize("mask", [None, MASK[:, None, None], torch.rand(B, 1, N, L) < 0.5])
def test_the_written_out_formula_is_the_fused_kernel(mask):
    q, k, v = torch.randn(B, HEADS, N, 4), torch.randn(B, HEADS, L, 4), torch.randn(B, HEADS, L, 4)
    if mask is not None:
        mask = mask | (torch.arange(L) == 0)  # a query that may look nowhere has no answer
    torch.testing.assert_close(attend(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, mask))


def test_a_mask_may_differ_from_query_to_query():
    attention, x = Attention(WIDTH, HEADS), torch.randn(B, N, WIDTH)
    mask = torch.rand(B, N, N) < 0.5
    mask |= torch.eye(N, dtype=torch.bool)
    expected, _ = of_pytorch(attention, WIDTH)(
        x, x, x, need_weights=False, attn_mask=~mask.repeat_interleave(HEADS, dim=0)
    )
    torch.testing.assert_close(attention(x, mask=mask), expected)


def encoding() -> TextEncoding:
    return TextEncoding(torch.randn(B, 4), torch.randn(B, L, WIDTH), MASK)


def test_the_end_of_a_caption_is_its_last_real_token():
    text = encoding()
    assert torch.equal(text.end, torch.stack([text.states[0, 0], text.states[1, 3], text.states[2, L - 1]]))


def test_repeating_and_tiling_keep_each_caption_whole():
    text = encoding()
    for found, rows in ((text.repeat(2), [0, 0, 1, 1, 2, 2]), (text.tile(2), [0, 1, 2, 0, 1, 2])):
        for name in ("z_text", "states", "mask"):
            assert torch.equal(getattr(found, name), getattr(text, name)[rows]), name


def test_scaled_embeddings_are_as_large_as_the_noise():
    z = F.normalize(torch.randn(64, 3, 8), dim=-1)
    scaled = scale_embedding(z)
    torch.testing.assert_close(scaled.square().mean(-1), torch.ones(64, 3))
    torch.testing.assert_close(F.normalize(scaled, dim=-1), z)


def test_zero_init_leaves_no_weight():
    layer = zero_init(nn.Linear(3, 4))
    assert isinstance(layer, nn.Linear) and not any(p.any() for p in layer.parameters())
