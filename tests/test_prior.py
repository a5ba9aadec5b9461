"""The prior: which token looks at which, and what a hidden caption leaves behind."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from minidalle.layers import TextEncoding
from minidalle.prior import DiffusionPrior, PriorConfig, choose_candidate, sight

CONFIG = PriorConfig(context_length=12, embed_dim=8, text_width=12, width=16, depth=2, num_heads=2)
B, K, L = 4, 3, 6
LENGTHS = torch.tensor([1, 3, 5, L])
MASK = torch.arange(L) < LENGTHS[:, None]
ALL = torch.ones(B, dtype=torch.bool)


def caption(**given: torch.Tensor) -> TextEncoding:
    """Draw the encoding of four captions of four lengths; parts may be given."""
    drawn = {"z_text": F.normalize(torch.randn(B, 8), dim=-1), "states": torch.randn(B, L, 12), "mask": MASK}
    return TextEncoding(**drawn | given)


def inputs() -> dict:
    return {"z_t": torch.randn(B, 1, 8), "t": torch.tensor([0, 10, 500, 999]), "text": caption()}


def row(given: dict, i: int) -> dict:
    """Take the inputs of one caption."""
    return {
        name: value.map(lambda x: x[i, None]) if name == "text" else value[i, None] for name, value in given.items()
    }


def changed(given: dict, name: str) -> dict:
    """Change one input, which may be a part of the caption."""
    if name in ("states", "z_text"):
        return given | {"text": replace(given["text"], **{name: torch.randn_like(getattr(given["text"], name))})}
    return given | {name: given[name].flip(0) if name == "t" else torch.randn_like(given[name])}


def sequence(prior: DiffusionPrior, **given) -> torch.Tensor:
    """Run the prior and read all tokens that leave its transformer: caption, z_text, timestep, z_t, query."""
    seen = []
    handle = prior.transformer.register_forward_hook(lambda module, args, output: seen.append(output))
    prior(**given)
    handle.remove()
    return seen[0]


def test_it_answers_with_an_embedding_for_each_noised_one():
    assert DiffusionPrior(CONFIG)(**inputs()).shape == (B, 1, 8)
    assert DiffusionPrior(CONFIG)(**inputs() | {"z_t": torch.randn(B, K, 8)}).shape == (B, K, 8)


# Where each input enters the sequence; what stands before must not see it, the query must.
@pytest.mark.parametrize("name,position", [("states", 0), ("z_text", L), ("t", L + 1), ("z_t", L + 2)])
def test_tokens_see_what_stands_before_them_and_the_query_sees_all(name, position):
    prior, given = DiffusionPrior(CONFIG), inputs()
    before, after = sequence(prior, **given), sequence(prior, **changed(given, name))
    assert before.shape == (B, L + 4, 16)
    torch.testing.assert_close(after[:, :position], before[:, :position])
    assert not torch.allclose(after[:, position], before[:, position])
    assert ((after[:, -1] - before[:, -1]).abs().amax(1) > 1e-5).all()


def test_later_words_are_not_seen_by_earlier_ones():
    prior, given = DiffusionPrior(CONFIG), inputs()
    before, states = sequence(prior, **given), given["text"].states.clone()
    states[:, 2] += torch.randn(B, 12)
    after = sequence(prior, **given | {"text": replace(given["text"], states=states)})
    torch.testing.assert_close(after[:, :2], before[:, :2])


def test_masked_words_do_not_matter():
    prior, given = DiffusionPrior(CONFIG), inputs()
    states, noise = given["text"].states, torch.randn(B, L, 12)
    masked, seen = (
        given | {"text": replace(given["text"], states=torch.where(mask[..., None], states, noise))}
        for mask in (MASK, ~MASK)
    )
    torch.testing.assert_close(prior(**masked), prior(**given))
    assert ((prior(**seen) - prior(**given)).abs().amax((1, 2)) > 1e-5).all()


@pytest.mark.parametrize("hide_text", [None, ALL, torch.tensor([True, False, True, False])])
def test_the_length_of_the_padding_does_not_matter(hide_text):
    prior, given = DiffusionPrior(CONFIG), inputs()
    longer = replace(
        given["text"],
        states=torch.cat([given["text"].states, torch.randn(B, 5, 12)], dim=1),
        mask=torch.cat([MASK, torch.zeros(B, 5, dtype=torch.bool)], dim=1),
    )
    found = prior(**given | {"text": longer}, hide_text=hide_text)
    torch.testing.assert_close(found, prior(**given, hide_text=hide_text))


def test_a_batch_is_its_members_one_by_one():
    prior, given = DiffusionPrior(CONFIG), inputs()
    torch.testing.assert_close(prior(**given), torch.cat([prior(**row(given, i)) for i in range(B)]))


def test_a_hidden_caption_leaves_no_trace_not_even_its_length():
    prior = DiffusionPrior(CONFIG)
    given = inputs() | {"z_t": torch.randn(1, 1, 8).expand(B, 1, 8), "t": torch.full((B,), 300)}
    found = prior(**given, hide_text=ALL)  # four captions of four lengths
    torch.testing.assert_close(found, found[:1].expand_as(found))
    assert torch.pdist(prior(**given)[:, 0]).min() > 1e-4


def test_hiding_is_done_row_by_row():
    prior, given, some = DiffusionPrior(CONFIG), inputs(), torch.tensor([True, False, False, True])
    found, shown, hidden = (prior(**given, hide_text=rows) for rows in (some, ~ALL, ALL))
    torch.testing.assert_close(found, torch.where(some[:, None, None], hidden, shown))
    torch.testing.assert_close(shown, prior(**given))
    assert ((shown - hidden).abs().amax((1, 2)) > 1e-5).all()


def test_without_the_caption_z_t_and_the_timestep_still_count():
    prior, given = DiffusionPrior(CONFIG), inputs()
    before = prior(**given, hide_text=ALL)
    for name in ("z_t", "t"):
        assert not torch.allclose(prior(**changed(given, name), hide_text=ALL), before)


def test_every_parameter_gets_a_gradient():
    prior = DiffusionPrior(CONFIG)
    prior(**inputs(), hide_text=torch.tensor([True, False, False, False])).square().sum().backward()
    assert [name for name, p in prior.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("hide_text", [None, torch.tensor([True, False, True, False])])
def test_several_noised_embeddings_of_one_caption_do_not_see_each_other(hide_text):
    prior, given = DiffusionPrior(CONFIG), inputs()
    z_t, t = torch.randn(B, K, 8), torch.randint(0, 1000, (B, K))
    together = prior(**given | {"z_t": z_t, "t": t}, hide_text=hide_text)
    for k in range(K):
        alone = prior(**given | {"z_t": z_t[:, k, None], "t": t[:, k]}, hide_text=hide_text)
        torch.testing.assert_close(together[:, k, None], alone, atol=1e-5, rtol=1e-4)


def test_one_timestep_may_be_that_of_all_noised_embeddings_of_a_caption():
    prior, given = DiffusionPrior(CONFIG), inputs() | {"z_t": torch.randn(B, K, 8)}
    of_each = given | {"t": given["t"][:, None].expand(B, K)}
    torch.testing.assert_close(prior(**given), prior(**of_each))


def test_one_tail_sees_as_a_plain_causal_transformer_does():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    real = torch.cat([mask, torch.ones(2, 4, dtype=torch.bool)], dim=1)
    assert torch.equal(sight(mask, 1), torch.ones(7, 7, dtype=torch.bool).tril() & real[:, None])


@pytest.mark.parametrize(
    ("cosines", "margin", "chosen"),
    [
        ((0.5, 0.51), 0.0, 1),
        ((0.5, 0.56), 0.03, 1),
        ((0.5, 0.52), 0.03, 0),
        ((0.6, 0.2), 0.03, 0),
        ((0.1, 0.8, 0.79, 0.9), 0.03, 3),
        ((0.1, 0.88, 0.79, 0.9), 0.03, 1),
        ((0.1, 0.88, 0.79, 0.9), 0.0, 3),
        ((0.4,), 0.03, 0),
    ],
)
def test_the_first_candidate_that_is_about_as_near_as_the_nearest_is_chosen(cosines, margin, chosen):
    angles = torch.tensor(cosines).acos()
    candidates = torch.stack([angles.cos(), angles.sin()], dim=1)
    z_text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = choose_candidate(torch.stack([candidates, candidates.flip(1)]), z_text, margin)
    torch.testing.assert_close(found, torch.stack([candidates[chosen], candidates[chosen].flip(0)]))


def test_without_a_margin_the_rule_is_the_papers():
    candidates, z_text = F.normalize(torch.randn(64, 5, 8), dim=-1), F.normalize(torch.randn(64, 8), dim=-1)
    nearest = torch.einsum("bkd,bd->bk", candidates, z_text).argmax(1)
    assert torch.equal(choose_candidate(candidates, z_text), candidates[torch.arange(64), nearest])
