"""What holds for every test: one thread a process, no window, and the same random numbers each time."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; xdist already uses every core
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("minidalle", deadline=None, derandomize=True)
hypothesis.settings.load_profile("minidalle")


@pytest.fixture(autouse=True)
def seed() -> None:
    """Start every test from the same seed, so that its result does not depend on which tests ran before it."""
    torch.manual_seed(0)
