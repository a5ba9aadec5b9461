"""The prior: who sees whom in its sequence, and what a hidden caption leaves behind."""

import pytest
import torch
import torch.nn.functional as F

from minidalle.prior import CANDIDATE_SLACK, DiffusionPrior, PriorConfig, choose_candidate, sight

CONFIG = PriorConfig(embed_dim=8, text_width=12, width=16, depth=2, num_heads=2)
B, L = 4, 6
LENGTHS = torch.tensor([1, 3, 5, L])
MASK = torch.arange(L) < LENGTHS[:, None]
HIDDEN = torch.ones(B, dtype=torch.bool)


def inputs() -> dict[str, torch.Tensor]:
    return {
        "z_t": torch.randn(B, 8),
        "t": torch.tensor([0, 10, 500, 999]),
        "text_states": torch.randn(B, L, 12),
        "mask": MASK,
        "z_text": F.normalize(torch.randn(B, 8), dim=-1),
    }


def sequence(prior: DiffusionPrior, **given) -> torch.Tensor:
    """Run the prior and read all tokens that leave its transformer: caption, z_text, timestep, z_t, query."""
    seen = []
    handle = prior.transformer.register_forward_hook(lambda module, args, output: seen.append(output))
    prior(**given)
    handle.remove()
    return seen[0]


def test_it_answers_with_an_embedding_for_each_caption():
    assert DiffusionPrior(CONFIG)(**inputs()).shape == (B, 8)


# Where each input enters the sequence; what stands before must not see it, the query must.
@pytest.mark.parametrize("name,position", [("text_states", 0), ("z_text", L), ("t", L + 1), ("z_t", L + 2)])
def test_tokens_see_what_stands_before_them_and_the_query_sees_all(name, position):
    prior, given = DiffusionPrior(CONFIG), inputs()
    before = sequence(prior, **given)
    changed = given | {name: given[name].flip(0) if name == "t" else torch.randn_like(given[name])}
    after = sequence(prior, **changed)
    assert before.shape == (B, L + 4, 16)
    torch.testing.assert_close(after[:, :position], before[:, :position])
    assert not torch.allclose(after[:, position], before[:, position])
    assert ((after[:, -1] - before[:, -1]).abs().amax(1) > 1e-5).all()


def test_later_words_are_not_seen_by_earlier_ones():
    prior, given = DiffusionPrior(CONFIG), inputs()
    before, states = sequence(prior, **given), given["text_states"].clone()
    states[:, 2] += torch.randn(B, 12)
    after = sequence(prior, **given | {"text_states": states})
    torch.testing.assert_close(after[:, :2], before[:, :2])


def test_masked_words_do_not_matter():
    prior, given = DiffusionPrior(CONFIG), inputs()
    noise = torch.randn_like(given["text_states"])
    masked = given | {"text_states": torch.where(MASK[..., None], given["text_states"], noise)}
    seen = given | {"text_states": torch.where(MASK[..., None], noise, given["text_states"])}
    torch.testing.assert_close(prior(**masked), prior(**given))
    assert ((prior(**seen) - prior(**given)).abs().amax(1) > 1e-5).all()


@pytest.mark.parametrize("drop_text", [None, HIDDEN, torch.tensor([True, False, True, False])])
def test_the_length_of_the_padding_does_not_matter(drop_text):
    prior, given = DiffusionPrior(CONFIG), inputs()
    padded = given | {
        "text_states": torch.cat([given["text_states"], torch.randn(B, 5, 12)], dim=1),
        "mask": torch.cat([MASK, torch.zeros(B, 5, dtype=torch.bool)], dim=1),
    }
    torch.testing.assert_close(prior(**padded, drop_text=drop_text), prior(**given, drop_text=drop_text))


def test_a_batch_is_its_members_one_by_one():
    prior, given = DiffusionPrior(CONFIG), inputs()
    rows = [prior(**{name: value[i : i + 1] for name, value in given.items()}) for i in range(B)]
    torch.testing.assert_close(prior(**given), torch.cat(rows))


def test_a_hidden_caption_leaves_no_trace_not_even_its_length():
    prior = DiffusionPrior(CONFIG)
    given = inputs() | {"z_t": torch.randn(1, 8).expand(B, 8), "t": torch.full((B,), 300)}
    found = prior(**given, drop_text=HIDDEN)  # four captions of four lengths
    torch.testing.assert_close(found, found[:1].expand_as(found))
    assert torch.pdist(prior(**given)).min() > 1e-4


def test_hiding_is_done_row_by_row():
    prior, given, drop = DiffusionPrior(CONFIG), inputs(), torch.tensor([True, False, False, True])
    found, shown, hidden = (prior(**given, drop_text=d) for d in (drop, ~HIDDEN, HIDDEN))
    torch.testing.assert_close(found, torch.where(drop[:, None], hidden, shown))
    torch.testing.assert_close(shown, prior(**given))
    assert ((shown - hidden).abs().amax(1) > 1e-5).all()


def test_without_the_caption_z_t_and_the_timestep_still_count():
    prior, given = DiffusionPrior(CONFIG), inputs()
    before = prior(**given, drop_text=HIDDEN)
    for change in ({"z_t": torch.randn(B, 8)}, {"t": given["t"].flip(0)}):
        assert not torch.allclose(prior(**given | change, drop_text=HIDDEN), before)


def test_scaled_embeddings_are_as_large_as_the_noise():
    z_image = F.normalize(torch.randn(64, 8), dim=-1)
    scaled = DiffusionPrior(CONFIG).scale(z_image)
    torch.testing.assert_close(scaled.square().mean(1), torch.ones(64))
    torch.testing.assert_close(F.normalize(scaled, dim=-1), z_image)


def test_every_parameter_gets_a_gradient():
    prior = DiffusionPrior(CONFIG)
    prior(**inputs(), drop_text=torch.tensor([True, False, False, False])).square().sum().backward()
    assert [name for name, p in prior.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_several_noised_embeddings_of_one_caption_do_not_see_each_other():
    prior, given = DiffusionPrior(CONFIG), inputs()
    z_t, t = torch.randn(B * 3, 8), torch.randint(0, 1000, (B * 3,))
    together = prior(**given | {"z_t": z_t, "t": t})
    assert together.shape == (B * 3, 8)
    for k in range(3):
        alone = prior(**given | {"z_t": z_t[k::3], "t": t[k::3]})
        torch.testing.assert_close(together[k::3], alone, atol=1e-5, rtol=1e-4)


def test_one_tail_sees_as_a_plain_causal_transformer_does():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    real = torch.cat([mask, torch.ones(2, 4, dtype=torch.bool)], dim=1)
    assert torch.equal(sight(mask, 1), torch.ones(7, 7, dtype=torch.bool).tril() & real[:, None])


@pytest.mark.parametrize(
    ("cosines", "chosen"),
    [
        ((0.5, 0.5 + 2 * CANDIDATE_SLACK), 1),
        ((0.5, 0.5 + 0.9 * CANDIDATE_SLACK), 0),
        ((0.6, 0.2), 0),
        ((0.1, 0.8, 0.79, 0.9), 3),
        ((0.1, 0.88, 0.79, 0.9), 1),
        ((0.4,), 0),
    ],
)
def test_the_first_candidate_that_is_about_as_near_as_the_nearest_is_chosen(cosines, chosen):
    angles = torch.tensor(cosines).acos()
    candidates = torch.stack([angles.cos(), angles.sin()], dim=1)
    z_text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = choose_candidate(torch.stack([candidates, candidates.flip(1)]), z_text)
    torch.testing.assert_close(found, torch.stack([candidates[chosen], candidates[chosen].flip(0)]))
