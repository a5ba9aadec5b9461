"""unCLIP as tables of rivals name it: with either prior, and with none."""

from pathlib import Path

import torch
from torch import nn

from minidalle.layers import TextEncoding
from minidalle.pipeline import MiniDalle


class DecoderAlone(MiniDalle):
    """unCLIP without a prior: z_image stays hidden, and the decoder draws by the caption alone.

    Paper: Ramesh et al. 2022, fig. 8, first row; in training z_image is dropped now and then (sec. 2.1).
    """

    @property
    def models(self) -> dict[str, nn.Module]:
        """Give what a picture takes, by kind."""
        return {"clip": self.clip, "decoder": self.decoder}

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Give what is called to draw, by name."""
        return {"text tower": self.clip.text_tower, "decoder": self.decoder}

    def sample_prior(self, text: TextEncoding, *_, **__) -> torch.Tensor:
        """Give for each caption the z_image (B, D) that the decoder takes for a hidden one."""
        hidden = self.decoder.null_image.detach()
        return (hidden / len(hidden) ** 0.5).expand(len(text.z_text), -1)


VARIANTS: dict[str, tuple[type[MiniDalle], str]] = {  # by name: what draws, and the prior that is loaded with it
    "unclip": (MiniDalle, "diffusion"),
    "unclip_ar": (MiniDalle, "autoregressive"),
    "unclip_caption": (DecoderAlone, "diffusion"),
}


def load_variant(name: str, source: str | Path = "tiny", device: str | None = None) -> MiniDalle:
    """Load unCLIP, a key of VARIANTS, from shipped weights or the folder of a run."""
    system, prior = VARIANTS[name]
    return system.from_pretrained(source, device, prior=prior)
