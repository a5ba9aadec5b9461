"""The whole system: a caption becomes z_text, the prior turns it into a z_image, the decoder draws that.

Paper: Ramesh et al. 2022, sec. 2. The three models know nothing of each other; they meet here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from minidalle import checkpoint, tokenizer
from minidalle.checkpoint import find_folder, load_model
from minidalle.clip import CLIP
from minidalle.data.images import to_pil
from minidalle.decoder import Decoder
from minidalle.device import autocast, pick_device
from minidalle.diffusion import GaussianDiffusion, cosine_betas, guided
from minidalle.prior import DiffusionPrior, choose_candidate
from minidalle.samplers import SAMPLERS, Step, draw_noise, last
from minidalle.upsampler import Upsampler, enlarge
from minidalle.world.captions import parse

NUM_TIMESTEPS = 1000  # table 3
PRIOR_STEPS = 64  # table 3
UPSAMPLER_STEPS = 12  # we differ: table 3 has 27
NO_UPSAMPLER = 'There is no upsampler here: train one beside the rest with "minidalle train upsampler", or do without.'


def prior_diffusion() -> GaussianDiffusion:
    """Give the prior's process: cosine, predicting z_image itself (sec. 2.2, table 3)."""
    return GaussianDiffusion(cosine_betas(NUM_TIMESTEPS), "x_start")


def decoder_diffusion() -> GaussianDiffusion:
    """Give the process of the decoder and of the upsampler: cosine (table 3).

    We differ: it predicts the picture, not its noise (Li and He 2025, "Back to Basics: Let Denoising Generative Models
    Denoise"). A small network learns plain pictures several times faster than the noise on them.
    """
    return GaussianDiffusion(cosine_betas(NUM_TIMESTEPS), "x_start")


@dataclass(frozen=True)
class Prompts:
    """Captions as the models take them."""

    z_text: torch.Tensor  # (B, D), unit norm
    text_states: torch.Tensor  # (B, L, W)
    mask: torch.Tensor  # (B, L) bool

    def repeat(self, times: int) -> "Prompts":
        """Repeat each caption so many times in a row."""
        rows = (value.repeat_interleave(times, 0) for value in (self.z_text, self.text_states, self.mask))
        return Prompts(*rows)

    def tile(self, times: int) -> "Prompts":
        """Repeat all captions, one whole row of them after the other."""
        if times == 1:
            return self
        return Prompts(*(torch.cat([value] * times) for value in (self.z_text, self.text_states, self.mask)))


@dataclass(frozen=True)
class Output:
    """What the pipeline gives: pictures, and the embedding each was drawn from."""

    images: list[Image.Image]
    tensor: torch.Tensor  # (B, 3, H, W) in [-1, 1]
    z_image: torch.Tensor  # (B, D), unit norm
    steps: list[torch.Tensor]  # the decoder's guesses of the picture, step by step; empty unless asked for


class MiniDalle:
    """Text to picture."""

    def __init__(
        self,
        clip: CLIP,
        prior: DiffusionPrior,
        decoder: Decoder,
        device: torch.device | None = None,
        two_things: bool = True,
        upsampler: Upsampler | None = None,
    ):
        self.two_things = two_things  # whether it was trained on scenes of two things as well
        self.device = device or torch.device("cpu")
        self.clip, self.prior, self.decoder = (m.to(self.device).eval() for m in (clip, prior, decoder))
        self.upsampler = upsampler and upsampler.to(self.device).eval()
        self.prior_diffusion = prior_diffusion().to(self.device)
        self.decoder_diffusion = decoder_diffusion().to(self.device)

    @classmethod
    def from_pretrained(cls, source: str | Path = "tiny", device: str | None = None) -> "MiniDalle":
        """Load a stack: the shipped one by its name, or the folder of a run; the upsampler where there is one.

        Raises: CheckpointError: when a piece is missing, damaged, or was not trained with the others.
        """
        folder = find_folder(source)
        clip, clip_header = load_model(CLIP, folder)
        pieces = []
        for piece in (DiffusionPrior, Decoder):
            model, header = load_model(piece, folder)
            if header.get("clip") != clip_header["sha256"]:
                raise checkpoint.CheckpointError(
                    f"The {piece.kind} in {folder} was trained with another CLIP than the one beside it: train it anew."
                )
            pieces.append(model)
        upsampler = load_model(Upsampler, folder)[0] if (folder / "upsampler.safetensors").exists() else None
        return cls(clip, *pieces, pick_device(device), clip_header.get("two_things", 1) > 0, upsampler)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        num_inference_steps: int = 20,
        guidance_scale: float = 1.25,
        prior_guidance_scale: float = 1.5,
        prior_num_inference_steps: int = PRIOR_STEPS,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | None = None,
        sampler: str = "dpm",
        z_image: torch.Tensor | None = None,
        return_steps: bool = False,
        upsample: bool = False,
    ) -> Output:
        """Draw pictures of prompts.

        Args:
            prompt: a caption or several, in the words of the world.
            num_inference_steps: of the decoder, 1 to 1000.
            guidance_scale: how far the decoder is pushed towards what it is told; 1 is off.
            prior_guidance_scale, prior_num_inference_steps: likewise for the prior.
            num_images_per_prompt: pictures of each caption.
            generator: where the noise comes from; a CPU generator gives the same noise on every device.
            sampler: the decoder's, a key of SAMPLERS.
            z_image: (B, D), drawn in place of what the prior would find; B = prompts times pictures of each.
            return_steps: whether to keep the decoder's film strip.
            upsample: whether the upsampler draws each picture again at twice its width.

        Raises: ValueError: on a prompt that is empty, has an unknown word (it is named), makes no sense or names more
            things than were trained; on numbers that make no sense; without an upsampler to upsample with.
        """
        if upsample and self.upsampler is None:
            raise ValueError(NO_UPSAMPLER)
        if type(num_images_per_prompt) is not int or num_images_per_prompt < 1:
            raise ValueError(f"{num_images_per_prompt} pictures were asked for; ask for a whole number, 1 or more.")
        if sampler not in SAMPLERS:
            raise ValueError(f'"{sampler}" is no sampler; choose one of {", ".join(SAMPLERS)}.')
        captions = [prompt] if isinstance(prompt, str) else prompt
        prompts = self.encode(captions).repeat(num_images_per_prompt)
        if crowded := [c for c in captions if len(parse(c).things) == 2 and not self.two_things]:
            raise ValueError(f'"{crowded[0]}" names two things; these weights have learned to draw one: name one.')
        if z_image is None:
            z_image = self.sample_prior(prompts, prior_num_inference_steps, prior_guidance_scale, generator)
        steps = []
        for step in self.decode(prompts, z_image, num_inference_steps, guidance_scale, generator, sampler):
            images = step.x_prev.float().clamp(-1, 1).cpu()
            if return_steps:
                steps.append(step.pred_x_start.float().cpu())
        if upsample:
            images = self.upsample(images, UPSAMPLER_STEPS, generator)
        return Output(to_pil(images), images, z_image.cpu(), steps)

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Prompts:
        """Turn captions into what the models take; an empty one is refused."""
        if not captions or not all(tokenizer.words_of(caption) for caption in captions):
            raise ValueError('The prompt is empty: say what to draw, for example "a red circle above a blue square".')
        tokens = tokenizer.encode(captions)
        mask = tokenizer.caption_mask(tokens)
        longest = int(mask.sum(1).max())
        tokens, mask = tokens[:, :longest].to(self.device), mask[:, :longest].to(self.device)
        with autocast(self.device):
            z_text, text_states = self.clip.encode_text(tokens)
        return Prompts(z_text, text_states, mask)

    @torch.no_grad()
    def sample_prior(
        self,
        prompts: Prompts,
        num_steps: int = PRIOR_STEPS,
        guidance_scale: float = 1.5,
        generator: torch.Generator | None = None,
        num_candidates: int = 2,
    ) -> torch.Tensor:
        """Find a z_image for each caption, the better of several candidates.

        Fresh noise at every step (DDPM) mends what a small prior gets wrong; without it, z_image often stays half way
        between two readings of a caption. All in full precision: to halve the small matrices at each call would cost
        more than it saves.

        Returns: (B, D), unit norm. Paper: sec. 2.2.
        """
        rows = prompts.z_text.repeat_interleave(num_candidates, 0)  # (B * candidates, D)

        def predict(z_t: torch.Tensor, t: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            told, hidden = prompts.tile(len(z_t) // len(rows)), hidden[::num_candidates]
            return self.prior(z_t, t, told.text_states, told.mask, told.z_text, hidden)

        model = guided(predict, guidance_scale)
        noise = draw_noise(rows, generator)
        found = last(SAMPLERS["ddpm"](self.prior_diffusion, model, noise, num_steps, False, generator))
        candidates = F.normalize(found.float(), dim=-1).unflatten(0, (-1, num_candidates))  # (B, candidates, D)
        return choose_candidate(candidates, prompts.z_text)

    @torch.no_grad()
    def decode(
        self,
        prompts: Prompts,
        z_image: torch.Tensor,
        num_steps: int = 20,
        guidance_scale: float = 1.25,
        generator: torch.Generator | None = None,
        sampler: str = "dpm",
    ) -> Iterator[Step]:
        """Draw z_image: an iterator of sampling steps, the last of which holds the pictures."""
        size, z_image = self.decoder.config.unet.image_size, z_image.to(self.device)
        if z_image.shape != prompts.z_text.shape:
            raise ValueError(f"z_image has shape {tuple(z_image.shape)}; {tuple(prompts.z_text.shape)} was expected.")
        if not z_image.isfinite().all():
            raise ValueError("z_image holds values that are not finite; give one as CLIP makes them, of norm 1.")

        def predict(x_t: torch.Tensor, t: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            copies = len(x_t) // len(z_image)
            told, z = prompts.tile(copies), torch.cat([z_image] * copies)
            with autocast(self.device):
                return self.decoder(x_t, t, z, told.text_states, told.mask, hidden, hidden).float()

        model = guided(predict, guidance_scale)
        noise = draw_noise(z_image.new_empty(len(z_image), 3, size, size), generator)
        yield from SAMPLERS[sampler](self.decoder_diffusion, model, noise, num_steps, generator=generator)

    @torch.no_grad()
    def upsample(self, images: torch.Tensor, num_steps: int = UPSAMPLER_STEPS, generator=None) -> torch.Tensor:
        """Draw pictures (B, 3, H, W) in [-1, 1] again at twice their width, by DDIM: (B, 3, 2 H, 2 W), on the CPU."""
        if self.upsampler is None:
            raise ValueError(NO_UPSAMPLER)
        enlarged = enlarge(images.to(self.device), self.upsampler.config.factor)

        def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            with autocast(self.device):
                return self.upsampler(x_t, t, enlarged).float()

        noise = draw_noise(enlarged, generator)
        return last(SAMPLERS["ddim"](self.decoder_diffusion, predict, noise, num_steps)).clamp(-1, 1).cpu()
