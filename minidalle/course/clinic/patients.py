"""A patient of the clinic: a small text-to-picture system that may have a mistake, behind one interface.

What is wrong with it is one changed habit, in how it was trained or in how it samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from minidalle import checkpoint
from minidalle.course.clinic import mistakes
from minidalle.course.clinic.mistakes import CLASSES, KIND, MISTAKES, SIZES, Habits
from minidalle.data.batches import Batch
from minidalle.diffusion import guided
from minidalle.layers import TextEncoding
from minidalle.samplers import SAMPLERS, last, spaced_timesteps
from minidalle.world.captions import TOKENIZER

FOLDERS = (checkpoint.PACKAGE / "clinic", checkpoint.PACKAGE.parent / "data" / "clinic")
STEPS, PRIOR_STEPS, GUIDANCE = 30, 16, 1.5  # of a drawing


@dataclass(frozen=True)
class Drawing:
    """Pictures, and what happened on the way to them."""

    images: torch.Tensor  # (B, 3, 32, 32) in [-1, 1], to be shown
    z_images: torch.Tensor  # (steps, B, D), what the decoder received at each step, unit norm
    levels: list[float]  # alphas_cumprod after each step
    rms: list[float]  # root of the mean square of x_t after each step
    halfway: torch.Tensor  # (B, 3, 32, 32), x_t after half of the steps


class Patient:
    """A small text-to-picture system that may have a mistake.

    Args:
        name: shown; does not tell what is wrong.
        models: clip, prior and decoder.
        habits: how it was trained and samples.
    """

    def __init__(self, name: str, models: dict[str, nn.Module], habits: Habits):
        self.name, self._habits = name, habits
        self.clip, self.prior, self.decoder = (models[kind].eval() for kind in CLASSES)
        self.diffusion = mistakes.process(habits)  # what the decoder was trained on
        self.way_back = mistakes.process(Habits())

    def __repr__(self) -> str:
        return self.name

    def changed(self, **habits) -> "Patient":
        """Give the same networks other habits, such as noise="deviation"; see Habits. No weight changes."""
        models = {"clip": self.clip, "prior": self.prior, "decoder": self.decoder}
        return Patient(f"{self.name}, changed", models, replace(self._habits, **habits))

    def encode(self, captions: Sequence[str]) -> TextEncoding:
        """Encode captions as CLIP's text tower does."""
        return self.clip.encode_text(*TOKENIZER.encode(captions))

    def train_pixels(self, images: torch.Tensor) -> torch.Tensor:
        """Give pictures in [-1, 1] as the decoder met them in training."""
        return mistakes.to_model(images, self._habits)

    def z_start(self, images: torch.Tensor) -> torch.Tensor:
        """Give the z_image (B, D) of pictures as the prior met them in training, before noise."""
        with torch.no_grad():
            return mistakes.z_start(self.clip.encode_image(images), self._habits)

    def noised(self, images: torch.Tensor, t: int, noise: torch.Tensor) -> torch.Tensor:
        """Noise pictures in [-1, 1] as the decoder met them in training at a timestep."""
        x_start = self.train_pixels(images)
        return self.diffusion.q_sample(x_start, torch.full((len(images),), t), noise)

    @torch.no_grad()
    def clip_loss(self, batch: Batch) -> float:
        """Give CLIP's loss of a batch, as it was trained."""
        return float(mistakes.clip_loss(self.clip, batch, self._habits))

    @torch.no_grad()
    def prior_loss(self, batch: Batch, seed: int) -> float:
        """Give the prior's loss of a batch, as it was trained but for the pairs, which are those of the batch."""
        habits = Habits(z_scaled=self._habits.z_scaled)
        return float(mistakes.prior_loss(self.prior, batch, torch.Generator().manual_seed(seed), habits, self.clip))

    @torch.no_grad()
    def decoder_errors(self, batch: Batch, t: int, seed: int, hide: bool = False) -> torch.Tensor:
        """Give the decoder's mean squared error of each picture of a batch at a timestep: (B,).

        Args:
            batch: pictures and captions.
            t: timestep.
            seed: of the noise.
            hide: whether z_image and caption are hidden.
        """
        noise = torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(seed))
        x_t, text = self.noised(batch.images, t, noise), self.clip.encode_text(batch.tokens, batch.mask)
        hidden, at = torch.full((len(x_t),), hide), torch.full((len(x_t),), t)
        answer = self.decoder(x_t, at, self.clip.encode_image(batch.images), text, hidden, hidden)
        return (answer - self.train_pixels(batch.images)).square().flatten(1).mean(1)

    @torch.no_grad()
    def find_z(self, text: TextEncoding, generator: torch.Generator) -> torch.Tensor:
        """Find what the decoder is to draw for captions: (B, D), unit norm."""
        if self._habits.z_from == "text":
            return text.z_text
        noise = torch.randn(len(text.z_text), 1, text.z_text.shape[1], generator=generator)
        steps = SAMPLERS["ddpm"](
            self.way_back, lambda z_t, t: self.prior(z_t, t, text), noise, PRIOR_STEPS, False, generator
        )
        return F.normalize(last(steps)[:, 0], dim=-1)

    @torch.no_grad()
    def draw(
        self, captions: Sequence[str], seed: int = 0, guidance_scale: float = GUIDANCE, noise_seed: int | None = None
    ) -> Drawing:
        """Draw captions by DDPM.

        Args:
            captions: in the words of the small world.
            seed: of z_image and of the noise that a drawing starts from.
            guidance_scale: 1 is off.
            noise_seed: of the fresh noise of each step; None: it follows from seed.
        """
        habits, text = self._habits, self.encode(captions)
        first, later = (
            torch.Generator().manual_seed(s) for s in (seed, seed + 10_000 if noise_seed is None else noise_seed)
        )
        x_t, z_image = torch.randn(len(captions), 3, 32, 32, generator=first), self.find_z(text, first)
        timesteps = spaced_timesteps(1000, STEPS)
        found = self.way_back.alphas_cumprod[timesteps].tolist()
        levels, z_images, rms = [*found[1:], 1.0], [], []
        for t, level, level_prev in zip(timesteps, found, levels, strict=True):
            if habits.z_from == "prior at every step":
                z_image = self.find_z(text, later)
            x_start = self._predict(x_t, t, z_image, text, guidance_scale).clamp(-1, 1)
            alpha = level / level_prev
            mean = (level_prev**0.5 * (1 - alpha) * x_start + alpha**0.5 * (1 - level_prev) * x_t) / (1 - level)
            variance = (1 - alpha) * (1 - level_prev) / (1 - level)
            size = {"deviation": variance**0.5, "variance": variance, "none": 0.0}[habits.noise]
            x_t = mean + size * torch.randn(x_t.shape, generator=later)
            z_images.append(z_image)
            if len(z_images) == STEPS // 2:
                halfway = x_t
            rms.append(float(x_t.square().mean().sqrt()))
        return Drawing(mistakes.from_model(x_t, habits).clamp(-1, 1), torch.stack(z_images), levels, rms, halfway)

    def _predict(self, x_t, t: int, z_image, text: TextEncoding, guidance_scale: float) -> torch.Tensor:
        both, twice = text.tile(2), torch.cat([z_image, z_image])

        def model(x_t: torch.Tensor, at: torch.Tensor, hide: torch.Tensor) -> torch.Tensor:
            once = len(x_t) == len(z_image)
            return self.decoder(x_t, at, z_image if once else twice, text if once else both, hide, hide)

        return guided(model, guidance_scale)(x_t, torch.full((len(x_t),), t))


def path_of(mistake: str) -> Path:
    """Give the file of the networks that were trained with a mistake."""
    folder = next((place for place in FOLDERS if place.is_dir()), FOLDERS[-1])
    return folder / mistakes.file_name(mistake)


def load(mistake: str, name: str | None = None) -> Patient:
    """Load the system that has a mistake.

    Raises:
        ValueError: when there is no such mistake.
        CheckpointError: when its file is missing or damaged.
    """
    if mistake not in MISTAKES:
        raise ValueError(f'"{mistake}" is no mistake of the clinic; choose one of {", ".join(MISTAKES)}.')
    models = read(path_of("healthy"))
    if mistakes.stages_of(MISTAKES[mistake]):
        models |= read(path_of(mistake))
    return Patient(name or mistake, models, MISTAKES[mistake])


def read(path: Path) -> dict[str, nn.Module]:
    """Read the networks of a file."""
    tensors, _ = checkpoint.load(path, KIND, most=2_000_000)
    models = {}
    for kind in dict.fromkeys(name.split(".", 1)[0] for name in tensors):
        own = {name.removeprefix(f"{kind}."): x.float() for name, x in tensors.items() if name.startswith(f"{kind}.")}
        with torch.device("meta"):
            models[kind] = CLASSES[kind](SIZES[kind])
        models[kind].load_state_dict(own, assign=True)
        models[kind].requires_grad_(False).eval()
    return models
