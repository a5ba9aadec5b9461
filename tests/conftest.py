"""What holds for every test: one thread a process, no window, the same random numbers each time; and one tiny run."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; xdist already uses every core
os.environ.setdefault("MPLBACKEND", "Agg")
if "MINIDALLE_TEST_DEVICE" not in os.environ:  # a GPU rounds otherwise: it is for tests/test_devices.py
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
import torch

from minidalle.ar_prior import AutoregressivePriorConfig
from minidalle.clip import CLIPConfig
from minidalle.decoder import DecoderConfig
from minidalle.losses import AutoregressivePriorLossConfig, DecoderLossConfig, PriorLossConfig, UpsamplerLossConfig
from minidalle.pipeline import MiniDalle
from minidalle.prior import PriorConfig
from minidalle.training.recipes import Preset, Recipe, StageRecipe
from minidalle.training.run import train
from minidalle.unet import UNetConfig
from minidalle.upsampler import UpsamplerConfig
from minidalle.world.captions import TOKENIZER

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background is born ignoring Ctrl-C
hypothesis.settings.register_profile("minidalle", deadline=None, derandomize=True)
hypothesis.settings.load_profile("minidalle")

_STAGE = StageRecipe(steps=12, batch_size=8, matrix_lr=0.02, lr=2e-3, warmup_steps=2)
_UNET = UNetConfig(
    image_size=16, channels=8, channel_mults=(1, 2), num_blocks=1, attention_levels=(1,), emb_dim=16, context_dim=16
)
_CONVOLUTIONS = replace(_UNET, in_channels=6, attention_levels=(), context_dim=0)
MICRO = Preset(
    name="micro",
    models={
        "clip": CLIPConfig(
            vocab_size=TOKENIZER.vocab_size,
            context_length=TOKENIZER.context_length,
            image_size=16,
            patch_size=8,
            embed_dim=16,
            width=16,
            image_depth=1,
            text_depth=1,
            num_heads=2,
            pool_dim=4,
        ),
        "prior": PriorConfig(
            context_length=TOKENIZER.context_length, embed_dim=16, text_width=16, width=16, depth=1, num_heads=2
        ),
        "ar_prior": AutoregressivePriorConfig(
            TOKENIZER.context_length,
            embed_dim=16,
            text_width=16,
            width=16,
            depth=1,
            num_heads=2,
            num_coordinates=6,
            num_buckets=8,
        ),
        "decoder": DecoderConfig(_UNET, embed_dim=16, text_width=16),
        "upsampler": UpsamplerConfig(_CONVOLUTIONS, image_size=32),
        "upsampler_2": UpsamplerConfig(_CONVOLUTIONS, image_size=64),
    },
    recipes={
        "quick": Recipe(
            two_objects=0.6,
            stages={
                "clip": replace(_STAGE, hard_negatives=True, full_captions=0.5),
                "prior": replace(_STAGE, loss=PriorLossConfig(noises=2)),
                "ar_prior": replace(_STAGE, loss=AutoregressivePriorLossConfig()),
                "decoder": replace(_STAGE, loss=DecoderLossConfig()),
                "upsampler": replace(_STAGE, loss=UpsamplerLossConfig()),
                "upsampler_2": replace(_STAGE, loss=UpsamplerLossConfig(p_degrade=0.5)),
            },
        )
    },
)  # every mechanism of a real preset, and far too small to draw anything


@pytest.fixture(autouse=True)
def seed() -> None:
    """Start every test from the same seed, so that its result does not depend on which tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def micro_run(tmp_path_factory) -> Path:
    """Train the micro preset once; the folder is for reading only."""
    folder = tmp_path_factory.mktemp("micro") / "run"
    train(MICRO, "quick", folder)
    return folder


@pytest.fixture
def pipe(micro_run) -> MiniDalle:
    """Load the micro run."""
    return MiniDalle.from_pretrained(micro_run, "cpu")
