"""The whole system: a caption becomes z_text, the prior turns it into a z_image, the decoder draws that.

Paper: Ramesh et al. 2022, sec. 2. The models know nothing of each other; they meet here.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image

from minidalle.ar_prior import AutoregressivePrior
from minidalle.checkpoint import CheckpointError, config_from_dict, find_folder, load_model
from minidalle.checks import check_noise, finite_number, texts, whole_number
from minidalle.clip import CLIP
from minidalle.data.images import to_pil
from minidalle.decoder import Decoder
from minidalle.device import autocast, pick_device
from minidalle.diffusion import DiffusionConfig, guided
from minidalle.layers import TextEncoding
from minidalle.prior import DiffusionPrior, choose_candidate
from minidalle.samplers import SAMPLERS, Noise, Step, draw_noise, last
from minidalle.tokenizer import Tokenizer
from minidalle.upsampler import SecondUpsampler, Upsampler, enlarge

NUM_CANDIDATES = 2  # of z_image for each picture, of which one is taken; sec. 2.2
CANDIDATE_MARGIN = 0.03  # of a cosine, see choose_candidate; 0 is the paper's
PAPER = DiffusionConfig()
UPSAMPLER_STEPS = 12  # we differ: table 3 has 27
MAX_PICTURES = 1024  # of a call, which bounds the memory
UPSAMPLERS: dict[str, type[Upsampler]] = {"upsampler": Upsampler, "upsampler_2": SecondUpsampler}  # one after the other

Prior = DiffusionPrior | AutoregressivePrior
PRIORS: dict[str, type[Prior]] = {"diffusion": DiffusionPrior, "autoregressive": AutoregressivePrior}
AR_CANDIDATES = 8  # we differ: the paper draws one; in a batch each costs less than half of the other prior's

Rephrase = Callable[[str], str]  # a prompt to a caption; says in a ValueError what it did not understand
# What makes a Rephrase of a header's entry `world`, by the world's name: the models themselves know no world
LANGUAGES = {
    "scenes": "minidalle.world.grammar:scene_language",
    "emoji": "minidalle.data.emoji_words:emoji_language",
    "signs": "minidalle.world.sign_words:sign_language",
}


@dataclass(frozen=True)
class Output:
    """What the pipeline gives: pictures, and what each was drawn from."""

    images: list[Image.Image]
    tensor: torch.Tensor  # (B, 3, H, W) in [-1, 1]
    z_image: torch.Tensor  # (B, D), unit norm
    captions: list[str]  # the prompts in the words that the models know
    steps: list[torch.Tensor]  # the decoder's estimates of the picture, step by step; empty unless asked for


class MiniDalle:
    """Text to picture.

    Args:
        clip, prior, decoder: the three models; the prior is either of PRIORS.
        tokenizer: the one that CLIP was trained with.
        device: where to compute; None: on the CPU.
        upsampler, upsampler_2: draw pictures again at twice their width, one after the other; None: not there.
        rephrase: brings a prompt into words that the models know; None: prompts are taken as they are.
        world: what the models say of the world they were trained on, its name first of all.
        *_diffusion: the processes that the models were trained for.
    """

    def __init__(
        self,
        clip: CLIP,
        prior: Prior,
        decoder: Decoder,
        tokenizer: Tokenizer,
        device: torch.device | None = None,
        upsampler: Upsampler | None = None,
        rephrase: Rephrase | None = None,
        world: dict | None = None,
        prior_diffusion: DiffusionConfig = PAPER,
        decoder_diffusion: DiffusionConfig = PAPER,
        upsampler_diffusion: DiffusionConfig = PAPER,
        upsampler_2: SecondUpsampler | None = None,
        upsampler_2_diffusion: DiffusionConfig = PAPER,
    ):
        self.device = device or torch.device("cpu")
        self.clip, self.prior, self.decoder = (m.to(self.device).eval() for m in (clip, prior, decoder))
        self.upsamplers = [m.to(self.device).eval() for m in (upsampler, upsampler_2) if m is not None]
        self.tokenizer, self.rephrase, self.world = tokenizer, rephrase, world or {}
        self.image_size = decoder.config.unet.image_size  # pixels, of what the decoder draws
        self.prior_diffusion, self.decoder_diffusion, *self.upsampler_diffusions = (
            config.build().to(self.device)
            for config in (prior_diffusion, decoder_diffusion, upsampler_diffusion, upsampler_2_diffusion)
        )

    @classmethod
    def from_pretrained(
        cls, source: str | Path = "tiny", device: str | None = None, prior: str = "diffusion"
    ) -> "MiniDalle":
        """Load a system: the shipped one by its name, or the folder of a run; upsamplers where there are any.

        Args:
            source: the name or the folder.
            device: cuda, mps or cpu; None: the best that is there.
            prior: a key of PRIORS.

        Raises:
            CheckpointError: when a piece is missing, damaged, or was not trained with the others.
            ValueError: when there is no such prior.
        """
        if prior not in PRIORS:
            raise ValueError(f'"{prior}" is no prior; choose one of {", ".join(PRIORS)}.')
        folder = find_folder(source)
        pieces = {"clip": CLIP, "prior": PRIORS[prior], "decoder": Decoder}
        loaded = {kind: load_model(model, folder) for kind, model in pieces.items()}
        for kind, model in UPSAMPLERS.items():
            if not (folder / f"{kind}.safetensors").exists():
                break  # the second draws what the first has drawn
            loaded[kind] = load_model(model, folder)
        return cls.from_pieces(loaded, pick_device(device), str(folder))

    @classmethod
    def from_pieces(
        cls, loaded: dict[str, tuple[torch.nn.Module, dict]], device: torch.device, where: str = "memory"
    ) -> "MiniDalle":
        """Put models together that were loaded one by one.

        Args:
            loaded: a model and its header for each of clip, prior, decoder, and perhaps upsamplers. Where there is an
                ar_prior beside a prior, it is left out.
            device: where to compute.
            where: they come from, for messages.

        Raises: CheckpointError: when they do not belong together.
        """
        loaded = {kind: piece for kind, piece in loaded.items() if kind != "ar_prior"}
        clip_header, headers = loaded["clip"][1], {kind: header for kind, (_, header) in loaded.items()}
        for kind in ("prior", "decoder"):
            if headers[kind].get("clip") != clip_header["sha256"]:
                raise CheckpointError(
                    f"The {kind} in {where} was trained with another CLIP than the one beside it: train it anew."
                )
        try:
            tokenizer = Tokenizer.from_dict(clip_header["tokenizer"])
            worlds = [header["world"] for kind, header in headers.items() if kind not in UPSAMPLERS]
            world = min(worlds, key=lambda world: world.get("two_objects", 0))
            rephrase = find_language(world["name"])(world) if world["name"] in LANGUAGES else None
            processes = {
                f"{kind}_diffusion": config_from_dict(DiffusionConfig, header["diffusion"])
                for kind, header in headers.items()
                if kind != "clip" and not isinstance(loaded[kind][0], AutoregressivePrior)
            }
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"What the models in {where} say of themselves is damaged ({error!r:.80})."
            ) from error
        models = {kind: model for kind, (model, _) in loaded.items()}
        return cls(**models, tokenizer=tokenizer, device=device, rephrase=rephrase, world=world, **processes)

    @property
    def models(self) -> dict[str, torch.nn.Module]:
        """Give what a picture takes, by kind."""
        return {"clip": self.clip, self.prior.kind: self.prior, "decoder": self.decoder}

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        """Give what is called to draw, by name."""
        return {"text tower": self.clip.text_tower, "prior": self.prior, "decoder": self.decoder}

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        num_inference_steps: int = 8,
        guidance_scale: float = 1.25,
        prior_guidance_scale: float = 1.5,
        prior_num_inference_steps: int = 32,
        num_images_per_prompt: int = 1,
        generator: Noise = None,
        sampler: str = "dpm",
        z_image: torch.Tensor | None = None,
        return_steps: bool = False,
        upsample: int = 0,
        rephrase: bool = True,
    ) -> Output:
        """Draw pictures of prompts.

        Args:
            prompt: a caption or several.
            num_inference_steps: of the decoder, 1 to 1000.
            guidance_scale: how far the decoder is pushed towards its conditions; 1 is off.
            prior_guidance_scale, prior_num_inference_steps: likewise for the prior (table 3 has 64 steps); the
                autoregressive prior has a step for each number of z_image instead.
            num_images_per_prompt: pictures of each caption.
            generator: where the noise comes from: one for all pictures, or a list with one for each, so that a picture
                does not depend on those drawn with it. A CPU generator gives the same noise on every device.
            sampler: the decoder's, a key of SAMPLERS.
            z_image: (B, D), drawn in place of what the prior would find; B = prompts times pictures of each.
            return_steps: whether to keep the decoder's film strip.
            upsample: how many upsamplers draw each picture again, each at twice the width; True is one.
            rephrase: whether prompts are brought into the words of training; if not, each word must be known.

        Raises: ValueError: on a prompt that is empty or not understood (the part is named); on numbers that make no
            sense; without enough upsamplers; when a picture is not finite.
        """
        self._check_upsamplers(upsample)
        prompts = texts(prompt, "The prompt")
        number = whole_number(num_images_per_prompt, "num_images_per_prompt", 1, MAX_PICTURES // len(prompts) or 1)
        whole_number(len(prompts), "The number of prompts", 1, MAX_PICTURES)
        check_noise(generator, number * len(prompts))
        if z_image is not None and not isinstance(z_image, torch.Tensor):
            raise ValueError(f"z_image is of type {type(z_image).__name__}; a tensor was expected.")
        captions = self.captions(prompts, rephrase)
        text = self.encode(captions).repeat(number)
        if z_image is None:
            z_image = self.sample_prior(text, prior_num_inference_steps, prior_guidance_scale, generator)
        steps = []
        for step in self.decode(text, z_image, num_inference_steps, guidance_scale, generator, sampler):
            if return_steps:
                steps.append(step.pred_x_start.float().cpu())
        images = step.x_prev.float().clamp(-1, 1)
        for number in range(upsample):
            images = self.upsample(images, UPSAMPLER_STEPS, generator, number)
        images = images.cpu()
        if not images.isfinite().all():
            raise ValueError("A picture holds values that are not finite: the weights or the settings are unusable.")
        return Output(to_pil(images), images, z_image.cpu(), captions, steps)

    def captions(self, prompts: Sequence[str], rephrase: bool = True) -> list[str]:
        """Bring prompts into the words that the models know; an empty one is refused."""
        if not all(prompt.strip(" ,.") for prompt in prompts):
            raise ValueError('The prompt is empty: say what to draw, for example "a red circle above a blue square".')
        return [self.rephrase(prompt) for prompt in prompts] if rephrase and self.rephrase else list(prompts)

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> TextEncoding:
        """Turn captions, every word of which is known, into what prior and decoder are conditioned on."""
        tokens, mask = self.tokenizer.encode(captions)
        with autocast(self.device):
            return self.clip.encode_text(tokens.to(self.device), mask.to(self.device))

    @torch.no_grad()
    def sample_prior(
        self,
        text: TextEncoding,
        num_steps: int = 32,
        guidance_scale: float = 1.5,
        generator: Noise = None,
        num_candidates: int | None = None,
        margin: float = CANDIDATE_MARGIN,
    ) -> torch.Tensor:
        """Find a z_image for each caption, the better of several candidates.

        All in full precision: to halve the small matrices at each call would cost more than it saves.

        Args:
            text: the captions (B, ...).
            num_steps: of the diffusion prior.
            guidance_scale: how far the prior is pushed towards the caption; 1 is off.
            generator: where the noise comes from, see __call__.
            num_candidates: of which one is taken; None: two of the diffusion prior, eight of the autoregressive.
            margin: see choose_candidate.

        Returns: (B, D), unit norm. Paper: sec. 2.2.
        """
        if isinstance(self.prior, AutoregressivePrior):
            candidates = self._draw_buckets(text, guidance_scale, generator, num_candidates or AR_CANDIDATES)
        else:
            number = num_candidates or NUM_CANDIDATES
            candidates = self._diffuse(text, num_steps, guidance_scale, generator, number)
        return choose_candidate(candidates, text.z_text, margin)

    def _diffuse(
        self, text: TextEncoding, num_steps: int, guidance_scale: float, generator: Noise, number: int
    ) -> torch.Tensor:
        """Draw candidates (B, K, D) by the diffusion prior.

        Fresh noise at every step (DDPM) mends what a small prior gets wrong; without it, z_image often stays half way
        between two readings of a caption.
        """
        both = text.tile(2)  # with the caption, and without

        def predict(z_t: torch.Tensor, t: torch.Tensor, hide: torch.Tensor) -> torch.Tensor:
            return self.prior(z_t, t, text if len(z_t) == len(text.mask) else both, hide)

        like = text.z_text[:, None].expand(-1, number, -1)  # (B, K, D)
        model, noise = guided(predict, guidance_scale), draw_noise(like, generator)
        steps = SAMPLERS["ddpm"](self.prior_diffusion, model, noise, num_steps, clip_x_start=False, generator=generator)
        return F.normalize(last(steps).float(), dim=-1)

    def _draw_buckets(self, text: TextEncoding, guidance_scale: float, generator: Noise, number: int) -> torch.Tensor:
        """Draw candidates (B, K, D) by the autoregressive prior."""
        noise = draw_noise(text.z_text.new_empty(len(text.z_text), number, self.prior.num_tokens), generator)
        uniform = torch.special.ndtr(noise).flatten(0, 1)  # each picture's from its own generator, as all noise
        z_image = self.prior.sample(text.repeat(number), uniform, finite_number(guidance_scale, "guidance_scale"))
        return rearrange(z_image, "(b k) d -> b k d", k=number)

    @torch.no_grad()
    def decode(
        self,
        text: TextEncoding,
        z_image: torch.Tensor,
        num_steps: int = 8,
        guidance_scale: float = 1.25,
        generator: Noise = None,
        sampler: str = "dpm",
    ) -> Iterator[Step]:
        """Draw z_image: an iterator of sampling steps, the last of which holds the pictures."""
        if not isinstance(sampler, str) or sampler not in SAMPLERS:
            raise ValueError(f'"{sampler}" is no sampler; choose one of {", ".join(SAMPLERS)}.')
        size, z_image = self.decoder.config.unet.image_size, z_image.to(self.device, torch.float32)
        if z_image.shape != text.z_text.shape:
            raise ValueError(f"z_image has shape {tuple(z_image.shape)}; {tuple(text.z_text.shape)} was expected.")
        if not z_image.isfinite().all():
            raise ValueError("z_image holds values that are not finite; give one as CLIP makes them, of norm 1.")
        both, both_z = text.tile(2), torch.cat([z_image, z_image])  # with conditions, and without

        def predict(x_t: torch.Tensor, t: torch.Tensor, hide: torch.Tensor) -> torch.Tensor:
            once = len(x_t) == len(z_image)
            with autocast(self.device):
                return self.decoder(x_t, t, z_image if once else both_z, text if once else both, hide, hide).float()

        model = guided(predict, guidance_scale)
        noise = draw_noise(z_image.new_empty(len(z_image), 3, size, size), generator)
        yield from SAMPLERS[sampler](self.decoder_diffusion, model, noise, num_steps, generator=generator)

    @torch.no_grad()
    def upsample(
        self, images: torch.Tensor, num_steps: int = UPSAMPLER_STEPS, generator: Noise = None, number: int = 0
    ) -> torch.Tensor:
        """Draw pictures (B, 3, H, W) in [-1, 1] again at twice their width, by DDIM and upsampler 0 or 1."""
        self._check_upsamplers(number + 1)
        model, diffusion = self.upsamplers[number], self.upsampler_diffusions[number]
        enlarged = enlarge(images.to(self.device), model.config.factor)

        def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            with autocast(self.device):
                return model(x_t, t, enlarged).float()

        noise = draw_noise(enlarged, generator)
        return last(SAMPLERS["ddim"](diffusion, predict, noise, num_steps)).clamp(-1, 1)

    def _check_upsamplers(self, number: int) -> None:
        """Raise ValueError unless there are so many upsamplers."""
        there = len(self.upsamplers)
        if not isinstance(number, int) or not 0 <= number <= there:
            found = f"upsample is {number!r}, and upsamplers here: {there}" if there else "There is no upsampler here"
            raise ValueError(f'{found}: train one beside the rest with "minidalle train {[*UPSAMPLERS][there % 2]}".')


def find_language(name: str) -> Callable[[dict], Rephrase]:
    """Import what brings prompts into the words of a world."""
    module, function = LANGUAGES[name].split(":")
    return getattr(import_module(module), function)
