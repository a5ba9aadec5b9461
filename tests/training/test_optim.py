"""Muon: its steps against the singular value decomposition, and what it is given to move."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minidalle.clip import CLIP, CLIPConfig
from minidalle.decoder import Decoder, DecoderConfig
from minidalle.prior import DiffusionPrior, PriorConfig
from minidalle.training.loop import fit
from minidalle.training.optim import Muon, make_optimizers, orthogonalize, split_parameters
from minidalle.training.recipes import StageRecipe
from minidalle.unet import UNetConfig


def matrices_with(singular_values: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw matrices with given singular values, and the orthogonal matrix U V' of each."""
    rank = min(rows, columns)
    u = torch.linalg.qr(torch.randn(len(singular_values), rows, rank))[0]
    v = torch.linalg.qr(torch.randn(len(singular_values), columns, rank))[0]
    return u * singular_values[:, None] @ v.mT, u @ v.mT


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8), (1, 16), (16, 1)])
def test_singular_values_come_near_one_and_their_vectors_stay(shape):
    rank = min(shape)
    values = torch.logspace(-1.5, 0, rank).flip(0).expand(4, rank) * torch.tensor([1e-4, 1.0, 3.0, 1e4])[:, None]
    matrices, nearest = matrices_with(values, *shape)
    found = orthogonalize(matrices)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.65 and values.max() < 1.25
    # with the same singular vectors, found = nearest * (a symmetric matrix with the new singular values)
    right = nearest.mT @ found if shape[0] >= shape[1] else found @ nearest.mT
    torch.testing.assert_close(right, right.mT, rtol=0, atol=2e-3)
    assert torch.linalg.eigvalsh(right).min() > 0.65


@pytest.mark.parametrize("shape", [(64, 64), (48, 432), (512, 128)])
def test_matrices_of_low_rank_do_not_grow(shape):
    rows, columns = shape
    low = torch.randn(4, rows, 3) @ torch.randn(4, 3, columns)
    values = torch.linalg.svdvals(orthogonalize(low))
    assert values[:, :3].min() > 0.65 and values.max() < 1.25 and values[:, 3:].max() < 0.1


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_it_runs_the_quintic_on_singular_values(shape):
    values = torch.tensor([[0.9, 0.5, 0.1]])
    matrices, _ = matrices_with(values, *shape)
    expected = values / values.norm()
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    found = torch.linalg.svdvals(orthogonalize(matrices))
    torch.testing.assert_close(found, expected.sort(descending=True)[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_a_batch_is_its_matrices_one_by_one(shape):
    matrices = torch.randn(5, *shape)
    one_by_one = torch.cat([orthogonalize(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(orthogonalize(matrices), one_by_one, rtol=1e-3, atol=1e-3)


def test_a_matrix_of_zeros_stays_one():
    assert not orthogonalize(torch.zeros(1, 3, 4)).any()


def test_the_first_step_has_the_size_that_was_asked_for():
    for shape, size in (((8, 8), 1.0), ((8, 32), 1.0), ((32, 8), 2.0)):
        p = nn.Parameter(torch.zeros(shape))
        gradients, nearest = matrices_with(torch.ones(1, 8), *shape)
        p.grad = gradients[0]
        Muon([p], lr=0.1).step()
        values = torch.linalg.svdvals(p.detach())
        assert (0.65 * size * 0.1 < values).all() and (values < 1.25 * size * 0.1).all()
        assert (p.detach() * nearest[0]).sum() < 0  # downhill


def test_momentum_is_nesterovs():
    p = nn.Parameter(torch.zeros(3, 3))
    optimizer, average, expected = Muon([p], lr=0.1, momentum=0.8), torch.zeros(3, 3), torch.zeros(3, 3)
    for _ in range(4):
        p.grad = torch.randn(3, 3)
        average = 0.8 * average + 0.2 * p.grad
        expected = expected - 0.1 * orthogonalize((0.2 * p.grad + 0.8 * average)[None])[0]
        optimizer.step()
    torch.testing.assert_close(p.detach(), expected)


def test_a_matrix_decays_apart_from_its_gradient():
    start, gradient = torch.randn(3, 3), torch.randn(3, 3)
    plain, decaying, idle = (nn.Parameter(start.clone()) for _ in range(3))
    for p, weight_decay in ((plain, 0.0), (decaying, 0.5), (idle, 0.5)):
        p.grad = torch.zeros(3, 3) if p is idle else gradient.clone()
        Muon([p], lr=0.1, weight_decay=weight_decay).step()
    torch.testing.assert_close(idle.detach(), 0.95 * start)
    torch.testing.assert_close(decaying.detach(), plain.detach() - 0.05 * start)


def test_a_kernel_moves_as_the_matrix_that_it_is():
    gradient = torch.randn(6, 4, 3, 3)
    kernel, matrix = nn.Parameter(torch.zeros(6, 4, 3, 3)), nn.Parameter(torch.zeros(6, 36))
    kernel.grad, matrix.grad = gradient, gradient.flatten(1)
    Muon([kernel, matrix], lr=0.1).step()
    assert kernel.any()
    torch.testing.assert_close(kernel.detach().flatten(1), matrix.detach())


def test_what_has_no_gradient_does_not_move():
    moved, still = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    moved.grad = torch.eye(2)
    Muon([moved, still], lr=0.1).step()
    assert moved.any() and torch.equal(still.detach(), torch.ones(2, 2))


def test_it_lowers_a_loss():
    x, teacher = torch.randn(64, 8), nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    matrices, others = split_parameters(model)
    muon, adam = Muon(matrices, lr=0.02), torch.optim.AdamW(others, 1e-2)
    losses = []
    for _ in range(100):
        loss = F.mse_loss(model(x), teacher(x).detach())
        model.zero_grad()
        loss.backward()
        muon.step()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 20


@pytest.mark.parametrize(
    "build",
    [
        lambda: CLIP(CLIPConfig(image_size=16, patch_size=4, embed_dim=8, width=8, image_depth=1, text_depth=1)),
        lambda: DiffusionPrior(PriorConfig(embed_dim=8, text_width=8, width=8, depth=1)),
        lambda: Decoder(DecoderConfig(UNetConfig(16, channels=8, channel_mults=(1, 2), emb_dim=8, context_dim=8))),
    ],
    ids=["clip", "prior", "decoder"],
)
def test_every_trainable_parameter_has_one_optimizer(build):
    model = build()
    frozen = next(m for m in model.modules() if isinstance(m, nn.Linear)).requires_grad_(False)
    matrices, others = split_parameters(model)
    split = [id(p) for p in (*matrices, *others)]
    assert len(split) == len(set(split))
    assert set(split) == {id(p) for p in model.parameters()} - {id(p) for p in frozen.parameters()}
    assert {id(p) for p in matrices} == {
        id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d) and m is not frozen
    }


def test_optimizers_have_the_rates_and_memories_that_were_tried():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    muon, adam = make_optimizers(model, StageRecipe(1, 1, matrix_lr=0.3, lr=0.2, weight_decay=0.1))
    ours, theirs = muon.param_groups[0], adam.param_groups[0]
    assert ours["params"] == [model[0].weight] and len(theirs["params"]) == 3
    assert (ours["lr"], ours["momentum"], ours["weight_decay"]) == (0.3, 0.95, 0.1)
    assert (theirs["lr"], theirs["betas"], theirs["weight_decay"]) == (0.2, (0.9, 0.99), 0)


def trained(gradients: list[tuple[torch.Tensor, torch.Tensor]], **momenta) -> tuple[torch.Tensor, torch.Tensor]:
    """Train a layer at full rates by losses of these gradients; gives how far its weight and its bias moved."""
    layer = nn.Linear(4, 3)
    before = copy.deepcopy(layer)

    def loss_at(model: nn.Module, step: int) -> torch.Tensor:
        weight, bias = gradients[step]
        return (model.weight * weight).sum() + (model.bias * bias).sum()

    steady = StageRecipe(len(gradients), 1, 0.1, 0.01, warmup_steps=0, decay_share=0, clip_norm=100, **momenta)
    fit(layer, loss_at, steady, progress=False)
    return (layer.weight - before.weight).detach(), (layer.bias - before.bias).detach()


def test_a_recipe_without_momentum_takes_plain_orthogonal_and_sign_steps():
    gradients = [(torch.randn(3, 4), torch.randn(3)) for _ in range(4)]
    weight, bias = trained(gradients, matrix_momentum=0.0, betas=(0.0, 0.0))
    torch.testing.assert_close(weight, -0.1 * sum(orthogonalize(g[None])[0] for g, _ in gradients))
    torch.testing.assert_close(bias, -0.01 * sum(g.sign() for _, g in gradients))


def test_two_steps_with_the_momenta_of_a_recipe_by_hand():
    (g, h), (g_2, h_2) = gradients = [(torch.randn(3, 4), torch.randn(3)) for _ in range(2)]
    weight, bias = trained(gradients, matrix_momentum=0.5, betas=(0.5, 0.9))
    steps = [0.75 * g, 0.125 * g + 0.75 * g_2]  # halfway from each gradient to (g / 2), then (g / 4 + g_2 / 2)
    torch.testing.assert_close(weight, -0.1 * sum(orthogonalize(step[None])[0] for step in steps))
    mean, square = (0.25 * h + 0.5 * h_2) / 0.75, (0.09 * h**2 + 0.1 * h_2**2) / 0.19
    torch.testing.assert_close(bias, -0.01 * (h.sign() + mean / square.sqrt()))
