"""A model in training: one step of it, and all that is kept between two steps."""

import copy
from pathlib import Path

import torch
from torch import nn

from minidalle import parallel
from minidalle.device import autocast, half_precision
from minidalle.training.optim import make_optimizers
from minidalle.training.recipes import StageRecipe
from minidalle.training.stages import LossAt
from minidalle.training.state import load_state, save_state

MAX_SKIPS = 24  # steps in a row that may overflow while the scale of a float16 loss falls


class Trainer:
    """A model in training: its averaged copy, its optimisers, and the precision it is trained in."""

    def __init__(self, model: nn.Module, recipe: StageRecipe):
        self.model, self.recipe = model, recipe
        self.device = next(model.parameters()).device
        self.on_cpu = self.device.type == "cpu"
        self.wrapped = parallel.wrap(model)
        self.averaged = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizers = self.make_optimizers()
        self.use_precision(half_precision(self.device))
        self.loss_sum, self.loss_count = torch.zeros((), device=self.device), 0
        self.bad_step = torch.zeros((), dtype=torch.int64, device=self.device)  # 0: all was finite
        self.skipped = 0  # steps in a row

    def make_optimizers(self) -> list[torch.optim.Optimizer]:
        """Make the optimisers."""
        return make_optimizers(self.model, self.recipe)

    def use_precision(self, dtype: torch.dtype | None) -> None:
        """Compute in a 16-bit type, or in float32; float16 needs losses to be scaled."""
        self.dtype = dtype
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)

    def step(self, loss_at: LossAt, step: int) -> None:
        """Take one step: loss, gradients, weights, averaged weights."""
        for optimizer, rate in zip(self.optimizers, self.rates(step), strict=True):
            optimizer.param_groups[0]["lr"] = rate
        with torch.enable_grad(), autocast(self.device, self.dtype):  # a notebook may have forbidden gradients
            loss = loss_at(self.wrapped, step)
        self.model.zero_grad(set_to_none=True)
        self.update(loss, step, self.decay(step))

    def rates(self, step: int) -> tuple[float, float]:
        """Give the learning rates of a step: Muon's and AdamW's."""
        factor = learning_rate_factor(step, self.recipe)
        return self.recipe.matrix_lr * factor, self.recipe.lr * factor

    def decay(self, step: int) -> float:
        """Give the decay of the averaged weights at a step; at first they follow the weights more closely."""
        return min(self.recipe.ema_decay, (step + 1) / (step + 10))

    def update(self, loss: torch.Tensor, step: int | torch.Tensor, decay: float | torch.Tensor) -> None:
        """Change the weights by the gradient of a loss, and the averaged weights after them."""
        self.scaler.scale(loss).backward()
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)

        if self._may_step(step, loss.detach(), norm):
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
            average_weights(self.averaged, self.model, decay)
            sizes = torch._foreach_norm(list(self.model.parameters()))
            self._note(step, torch.stack(sizes).sum().isfinite())
        self.scaler.update()
        self.loss_sum += loss.detach()
        self.loss_count += 1

    def _may_step(self, step: int | torch.Tensor, loss: torch.Tensor, norm: torch.Tensor) -> bool:
        """Tell whether loss and gradient can be used, and note where they cannot.

        On a GPU the question would make it wait, so there the answer is yes, and the note is read before a save.
        """
        if not self.scaler.is_enabled():
            finite = loss.isfinite() & norm.isfinite()
            self._note(step, finite)
            return not self.on_cpu or bool(finite)
        # A scaled loss may overflow in its gradient: all optimisers skip that step, and the scale falls
        self.skipped = 0 if norm.isfinite() else self.skipped + 1
        if self.skipped > MAX_SKIPS or not loss.isfinite():
            self._note(step, torch.zeros_like(self.bad_step).bool())
        return self.skipped == 0 and bool(loss.isfinite())

    def _note(self, step: int | torch.Tensor, finite: torch.Tensor) -> None:
        self.bad_step.copy_(torch.where((self.bad_step == 0) & ~finite, step + 1, self.bad_step))

    def first_bad(self) -> int:
        """Give the first step, counted from 1, whose numbers were not finite; 0 when there is none."""
        return int(self.bad_step)

    def mean_loss(self) -> float:
        """Give the mean loss since the last call."""
        mean = float(self.loss_sum) / max(1, self.loss_count)
        self.loss_sum.zero_()
        self.loss_count = 0
        return mean

    def save(self, path: Path, step: int, seconds: float, origin: dict | None) -> None:
        """Keep all that a resumed training needs, its precision and number of threads included."""
        header = {
            "step": step,
            "seconds": seconds,
            "origin": origin,
            "scaler": self.scaler.state_dict(),
            "precision": precision_name(self.dtype),
            "threads": torch.get_num_threads(),
            "loss": [float(self.loss_sum), self.loss_count],
        }
        save_state(path, header, self.model, self.averaged, self.optimizers)

    def load(self, path: Path, origin: dict | None) -> dict:
        """Put back what save kept, and give its header."""
        header = load_state(path, self.model, self.averaged, self.optimizers, origin)
        self.use_precision(None if header["precision"] == "float32" else getattr(torch, header["precision"]))
        if header["scaler"]:
            self.scaler.load_state_dict(header["scaler"])
        total, self.loss_count = header["loss"]
        self.loss_sum.fill_(total)
        return header


def precision_name(dtype: torch.dtype | None) -> str:
    """Name the type that matrix products are computed in."""
    return str(dtype or torch.float32).removeprefix("torch.")


def learning_rate_factor(step: int, recipe: StageRecipe) -> float:
    """Give the share of the full learning rate at a step: a linear rise, a plateau, a linear fall to zero."""
    rise = (step + 1) / max(1, recipe.warmup_steps)
    fall = (recipe.steps - step) / max(1, recipe.decay_share * recipe.steps)
    return min(1.0, rise, fall)


@torch.no_grad()
def average_weights(averaged: nn.Module, model: nn.Module, decay: float | torch.Tensor) -> None:
    """Move averaged weights towards the model's: averaged = decay * averaged + (1 - decay) * model."""
    old, new = list(averaged.parameters()), list(model.parameters())
    if isinstance(decay, torch.Tensor):  # within a CUDA graph; a lerp would read its value on the CPU
        torch._foreach_mul_(old, decay)
        torch._foreach_add_(old, torch._foreach_mul(new, 1 - decay))
    else:
        torch._foreach_lerp_(old, new, 1 - decay)
