"""A training step as one CUDA graph: recorded once, then replayed.

A step of a small model is some thousand kernels of a few microseconds each, and it takes a CPU ten times as long to
launch them as a GPU to run them. A graph is launched as a whole. What changes from step to step lies in tensors that
the graph reads anew: batch, learning rates, decay, and the seed of the noise, which is drawn on the GPU here. So the
steps are the same on every run of this path, and not those of other devices to the last digit.
Source: PyTorch, "CUDA semantics", section "CUDA graphs".
"""

import os
import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from minidalle import parallel
from minidalle.data.batches import Batch
from minidalle.device import allowed_cores, autocast, half_precision
from minidalle.training.optim import make_optimizers
from minidalle.training.recipes import StageRecipe
from minidalle.training.stages import LossAt, StageLoss, noise_seed
from minidalle.training.trainer import Trainer

WARMUP_STEPS = 3  # taken kernel by kernel, so that every state and workspace is there before the recording
MAX_WORKERS = 6  # processes that draw batches ahead
AHEAD = 8  # batches that each of them may have ready


def make_trainer(model: nn.Module, recipe: StageRecipe, loss_at: LossAt) -> Trainer:
    """Make what takes the steps: by graphs on CUDA, in one process, where the loss is a stage's and is not scaled.

    MINIDALLE_GRAPHS=0 turns graphs off.
    """
    device = next(model.parameters()).device
    wanted = device.type == "cuda" and os.environ.get("MINIDALLE_GRAPHS", "1") != "0" and parallel.number() == 1
    if wanted and isinstance(loss_at, StageLoss) and half_precision(device) != torch.float16:
        return GraphedTrainer(model, recipe)
    return Trainer(model, recipe)


class GraphedTrainer(Trainer):
    """Takes the steps of a Trainer, each by one launch."""

    def __init__(self, model: nn.Module, recipe: StageRecipe):
        super().__init__(model, recipe)
        self.generator = torch.Generator(self.device)
        self.step_number = torch.zeros((), dtype=torch.int64, device=self.device)
        self.decay_now = torch.zeros((), device=self.device)
        self.stream = torch.cuda.Stream(self.device)
        self.batch: Batch | None = None  # the tensors that the graph reads
        self.graph: torch.cuda.CUDAGraph | None = None
        self.batches: Iterator[list[torch.Tensor]] | None = None
        self.taken = 0  # steps of this process

    def make_optimizers(self) -> list[torch.optim.Optimizer]:
        """Make the optimisers, with rates that a graph can read."""
        return make_optimizers(self.model, self.recipe, graphed=True)

    def step(self, loss_at: StageLoss, step: int) -> None:
        """Take one step; kernel by kernel where a state was resumed whose losses are scaled."""
        if self.scaler.is_enabled():
            return super().step(loss_at, step)
        if self.batches is None:
            self.batches = draw_ahead(loss_at, range(step, self.recipe.steps))
        self._put(next(self.batches), loss_at, step)
        if self.graph is not None:
            self.graph.replay()
        elif self.taken < WARMUP_STEPS:
            with after(self.stream):
                self.model.zero_grad(set_to_none=True)
                self._whole(loss_at)
        else:
            self._record(loss_at)
            self.graph.replay()
        self.taken += 1
        self.loss_count = self.loss_count + 1 if self.graph is not None else self.loss_count

    def _put(self, tensors: list[torch.Tensor], loss_at: StageLoss, step: int) -> None:
        """Set all that changes from step to step."""
        if self.batch is None:
            self.batch = Batch(*(x.to(self.device) for x in tensors), captions=[])
        for there, x in zip((self.batch.images, self.batch.tokens, self.batch.mask), tensors, strict=True):
            there.copy_(x, non_blocking=True)
        for optimizer, rate in zip(self.optimizers, self.rates(step), strict=True):
            optimizer.param_groups[0]["lr"].fill_(rate)
        self.decay_now.fill_(self.decay(step))
        self.step_number.fill_(step)
        self.generator.manual_seed(noise_seed(loss_at.source.seed, step))

    def _whole(self, loss_at: StageLoss) -> None:
        with autocast(self.device, self.dtype):
            loss = loss_at.of(self.model, self.batch, self.generator, self.step_number)
        self.update(loss, self.step_number, self.decay_now)

    def _record(self, loss_at: StageLoss) -> None:
        """Record the step; what it would do happens only when it is replayed."""
        self.model.zero_grad(set_to_none=True)  # so that gradients are made within the graph, in its memory
        counted = self.loss_count
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(self.generator)
        with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):  # workers go on
            self._whole(loss_at)
        self.loss_count = counted


class after:  # noqa: N801 (reads as the words it stands for: with after(stream))
    """Run on a stream what comes after all that was asked so far, and let what follows wait for it."""

    def __init__(self, stream: torch.cuda.Stream):
        self.stream, self.context = stream, torch.cuda.stream(stream)

    def __enter__(self) -> None:
        self.stream.wait_stream(torch.cuda.current_stream())
        self.context.__enter__()

    def __exit__(self, *error) -> None:
        self.context.__exit__(*error)
        torch.cuda.current_stream().wait_stream(self.stream)


class Steps(Dataset):
    """The batches of a training by step, all of one shape: captions are padded to the longest there may be."""

    def __init__(self, loss_at: StageLoss):
        self.source, self.size = loss_at.source, loss_at.recipe.batch_size

    def __getitem__(self, step: int) -> tuple[torch.Tensor, ...]:
        batch = self.source.batch(step, self.size)
        missing = self.source.tokenizer.context_length - batch.tokens.shape[1]
        return batch.images, F.pad(batch.tokens, (0, missing)), F.pad(batch.mask, (0, missing))


def draw_ahead(loss_at: StageLoss, steps: range) -> Iterator[list[torch.Tensor]]:
    """Draw the batches of steps in processes of their own, in order, into memory that a GPU reads by itself."""
    workers = max(1, min(MAX_WORKERS, allowed_cores() - 1))
    loader = DataLoader(
        Steps(loss_at), batch_size=None, sampler=steps, num_workers=workers, prefetch_factor=AHEAD, pin_memory=True
    )
    with warnings.catch_warnings(action="ignore"):  # Python's, of a fork beside threads: the workers use none of them
        return iter(loader)
