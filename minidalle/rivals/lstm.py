"""The baseline of its day: an LSTM reads the caption, transposed convolutions draw, and pixels are compared.

One caption fits many pictures, and the squared error of one answer to all of them is least at their mean: whatever the
caption leaves open is drawn as an average, the same one for every seed.
Paper: Hochreiter and Schmidhuber 1997 (LSTM); Radford et al. 2016, sec. 3 (the stack of transposed convolutions).
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from minidalle.data.batches import Batch
from minidalle.layers import end_of
from minidalle.losses import Noise
from minidalle.rivals.family import Family, Rival
from minidalle.training.recipes import StageRecipe
from minidalle.training.stages import Stage
from minidalle.unet import norm

MAP_SIZE = 4  # cells along each side of the smallest map


@dataclass(frozen=True)
class LSTMConfig:
    """Sizes of the drawing model, and of the encoder of pictures that may help it in training."""

    vocab_size: int = 64  # of the tokenizer
    text_width: int = 96  # W, of the LSTM's state and of a picture's features
    image_size: int = 32  # pixels
    decoder_widths: tuple[int, ...] = (96, 64, 32)  # channels of the maps; each next one is twice as wide and high
    encoder_widths: tuple[int, ...] = (24, 48, 64)  # channels on the way down

    def __post_init__(self):
        sizes = [MAP_SIZE * 2 ** len(widths) for widths in (self.decoder_widths, self.encoder_widths)]
        if sizes != [self.image_size] * 2:
            raise ValueError(
                f"Decoder and encoder of {len(self.decoder_widths)} and {len(self.encoder_widths)} levels work on "
                f"pictures of {sizes[0]} and {sizes[1]} pixels, not of {self.image_size}: choose other widths."
            )


@dataclass(frozen=True)
class LSTMLossConfig:
    """What shapes the loss; the plain pixel loss has feature_weight 0."""

    feature_weight: float = 0.0  # of drawing a picture from its own features, and of pulling the caption's to them


class CaptionLSTM(nn.Module):
    """Read a caption word by word; the state at its end token stands for all of it."""

    def __init__(self, config: LSTMConfig):
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.text_width)
        self.lstm = nn.LSTM(config.text_width, config.text_width, batch_first=True)
        with torch.no_grad():  # two biases are added; words of the far past are kept at first (Jozefowicz et al. 2015)
            self.lstm.bias_hh_l0[config.text_width : 2 * config.text_width].fill_(1.0)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Encode captions: tokens (B, L) and mask (B, L), True for real ones, to (B, W)."""
        states, _ = self.lstm(self.words(tokens))  # a state has seen no later token, so padding changes nothing
        return end_of(states, mask)


class DeconvDecoder(nn.Module):
    """Draw a picture from a vector by a stack of transposed convolutions, each of which doubles height and width."""

    def __init__(self, config: LSTMConfig):
        super().__init__()
        first, *_ = widths = config.decoder_widths
        self.to_map = nn.Linear(config.text_width, first * MAP_SIZE**2)
        self.norms = nn.ModuleList(norm(width) for width in widths)
        self.deconvs = nn.ModuleList(
            nn.ConvTranspose2d(width, after, 4, stride=2, padding=1) for width, after in pairwise((*widths, 3))
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Draw: features (B, W) to pictures (B, 3, S, S)."""
        h = self.to_map(features).unflatten(1, (-1, MAP_SIZE, MAP_SIZE))
        for normalize, deconv in zip(self.norms, self.deconvs, strict=True):
            h = deconv(F.relu(normalize(h)))
        return h.float()


class ImageCNN(nn.Module):
    """Encode a picture by convolutions, each of which halves height and width."""

    def __init__(self, config: LSTMConfig):
        super().__init__()
        widths = config.encoder_widths
        self.convs = nn.ModuleList(
            nn.Conv2d(before, width, 4, stride=2, padding=1) for before, width in pairwise((3, *widths))
        )
        self.norms = nn.ModuleList(norm(width) for width in widths)
        self.to_features = nn.Linear(widths[-1] * MAP_SIZE**2, config.text_width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Encode: pictures (B, 3, S, S) to features (B, W) between -1 and 1, as an LSTM's state is."""
        h = images
        for conv, normalize in zip(self.convs, self.norms, strict=True):
            h = F.relu(normalize(conv(h)))
        return self.to_features(h.flatten(1)).tanh()


class LSTMPainter(nn.Module):
    """Draw the one picture that stands for a caption; in training, also draw pictures from their own features."""

    kind, config_class = "lstm", LSTMConfig

    def __init__(self, config: LSTMConfig):
        super().__init__()
        self.config = config
        self.text = CaptionLSTM(config)
        self.encoder = ImageCNN(config)
        self.decoder = DeconvDecoder(config)

    def draw(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Draw pictures (B, 3, S, S) of captions."""
        return self.decoder(self.text(tokens, mask))

    def forward(
        self, images: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw captions, and pictures from their features.

        Returns: both drawings (B, 3, S, S), and the features (B, W) of captions and of pictures.
        """
        said, seen = self.text(tokens, mask), self.encoder(images)
        return self.decoder(said), self.decoder(seen), said, seen


def lstm_loss(model: nn.Module, batch: Batch, generator: Noise, config: LSTMLossConfig) -> torch.Tensor:
    """Learn to draw each picture from its caption: the mean squared error of a pixel.

    With feature_weight, the picture's own features learn to draw it as well, and the caption's are pulled to them, as
    popular articles join an LSTM and a CNN. Only captions are there to draw from, so it stays a help in training.
    """
    drawn, redrawn, said, seen = model(batch.images, batch.tokens, batch.mask)
    features = F.mse_loss(redrawn, batch.images) + F.mse_loss(said.float(), seen.detach().float())
    return F.mse_loss(drawn, batch.images) + config.feature_weight * features


def draw(rival: Rival, tokens: torch.Tensor, mask: torch.Tensor, generator: object) -> torch.Tensor:
    """Draw the picture of each caption; nothing is left to chance."""
    return rival.models["lstm"].draw(tokens, mask)


def recipe(steps: int, ema_decay: float) -> StageRecipe:
    """Describe a training."""
    return StageRecipe(
        steps, 64, matrix_lr=0.02, lr=5e-3, ema_decay=ema_decay, loss=LSTMLossConfig(), full_captions=0.5
    )


FAMILY = Family(
    name="lstm",
    summary="LSTM and transposed convolutions, trained with a pixel loss",
    stages={"lstm": Stage(LSTMPainter, lstm_loss)},
    models={"lstm": LSTMConfig()},
    recipes={"quick": {"lstm": recipe(5000, 0.99)}, "full": {"lstm": recipe(50_000, 0.999)}},
    draw=draw,
    networks=lambda models: {"text encoder": models["lstm"].text, "decoder": models["lstm"].decoder},
)
