"""Muon for the matrices, AdamW for everything else."""

import torch
from torch import nn

from minidalle.training.recipes import StageRecipe

# Coefficients of the quintic iteration that drives all singular values towards 1 (Jordan et al. 2024)
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: torch.Tensor, num_iterations: int = 5) -> torch.Tensor:
    """Replace the singular values of matrices by numbers near 1.

    The iteration X -> aX + b(XX')X + c(XX')(XX')X is run on the small square XX' alone, and applied to X at the end.

    Args:
        matrices: (B, M, N), float32; in 16 bits the Gram matrix of a low rank is not positive, and it diverges.
        num_iterations: 5 bring singular values above 0.01 of the largest into about 0.7 to 1.2.

    Returns: (B, M, N).
    Paper: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalize(matrices.mT, num_iterations).mT
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = QUINTIC
    gram, product = x @ x.mT, None  # (B, M, M)
    for i in range(num_iterations):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else factor @ product
        if i < num_iterations - 1:
            gram = factor @ gram @ factor
    return product @ x


class Muon(torch.optim.Optimizer):
    """Gradient descent with momentum in which every matrix moves by an orthogonal step of a given size.

    A convolution kernel counts as a matrix (out, in * height * width). Matrices of one shape are handled together,
    which is several times faster than one by one. torch.optim.Muon takes no kernels, which are most of a UNet.
    At each step a matrix first shrinks by the share lr * weight_decay (Loshchilov and Hutter 2019).
    """

    def __init__(self, parameters, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(tuple(p.flatten(1).shape), []).append(p)
            for (rows, columns), parameters in by_shape.items():
                steps = orthogonalize(self._momenta(parameters, group["momentum"]))
                size = group["lr"] * max(1.0, rows / columns) ** 0.5
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                moves = [move.view_as(p) for move, p in zip((size * steps).unbind(), parameters, strict=True)]
                torch._foreach_sub_(parameters, moves)

    def _momenta(self, parameters: list[nn.Parameter], momentum: float) -> torch.Tensor:
        gradients = [p.grad for p in parameters]
        averages = [self.state[p].setdefault("average", torch.zeros_like(p)) for p in parameters]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        ahead = [g.lerp(average, momentum) for g, average in zip(gradients, averages, strict=True)]  # Nesterov
        return torch.stack([g.flatten(1) for g in ahead])


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Sort the trainable parameters: weights of linear and convolution layers for Muon, the rest for AdamW."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    matrices = [layer.weight for layer in layers if layer.weight.requires_grad]
    known = {id(p) for p in matrices}
    return matrices, [p for p in model.parameters() if p.requires_grad and id(p) not in known]


def make_optimizers(model: nn.Module, recipe: StageRecipe, graphed: bool = False) -> list[torch.optim.Optimizer]:
    """Make Muon for the matrices of a model, which alone decay, and AdamW for the rest.

    Args:
        model: what they train.
        recipe: their learning rates and momenta, and the weight decay of the matrices.
        graphed: whether a CUDA graph is to hold their steps; then the rates are tensors, which a replay reads anew.
    """
    matrices, others = split_parameters(model)
    matrix_lr, lr = recipe.matrix_lr, recipe.lr
    if graphed:
        matrix_lr, lr = (torch.tensor(rate, device=others[0].device) for rate in (matrix_lr, lr))
    muon = Muon(matrices, matrix_lr, recipe.matrix_momentum, recipe.weight_decay)
    return [muon, torch.optim.AdamW(others, lr, betas=recipe.betas, weight_decay=0, capturable=graphed)]
