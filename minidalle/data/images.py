"""Pictures to tensors and back: the one place where pixel ranges change, and where files from outside are opened.

Models see float32 in [-1, 1], files and screens 0 to 255.
"""

import contextlib
import stat
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from minidalle.checkpoint import brief
from minidalle.checks import whole_number

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # Pillow has sixty decoders; a file's content chooses among these alone
MAX_BYTES = 64 * 2**20  # of a picture's file
MAX_PIXELS = 8192 * 8192  # of a picture from outside; phones make 50 million, and Pillow warns from 89 million on
MAX_SIDE = 4096  # pixels that pictures are brought to
GREYS = {"I;16": 65535, "I;16L": 65535, "I;16B": 65535, "I;16N": 65535, "I": 65535, "F": 1.0}  # white, by Pillow's mode
LARGE = 2**23  # pixels; threads decode larger pictures one at a time, since each may take a gigabyte
SHALLOW = {"L;2": 85, "L;4": 17}  # what Pillow multiplies few grey levels by, but not the one that is transparent

_one_large = Lock()


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """Turn images (B, 3, H, W) in [-1, 1] into pictures; values outside are clipped.

    Raises: ValueError: when they have another shape, are whole numbers, or are not finite.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        found = f"{tuple(images.shape)}, {images.dtype}".replace("torch.", "")
        raise ValueError(f"The images are {found}; floats of shape (B, 3, H, W) in [-1, 1] were expected.")
    images = images.detach().float()
    if not images.isfinite().all():
        raise ValueError("The images hold values that are not finite: look for what made them.")
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte()
    return [Image.fromarray(picture) for picture in pixels.permute(0, 2, 3, 1).cpu().numpy()]


def from_pil(pictures: list[Image.Image], size: int) -> torch.Tensor:
    """Turn pictures into images (B, 3, size, size), float32 in [-1, 1]; the middle square of each is taken.

    Args:
        pictures: of any mode; see to_rgb.
        size: pixels along each side, 1 to 4096.

    Raises: ValueError: when a picture is too large, or says not what its numbers mean.
    """
    size = whole_number(size, "The size of the pictures", 1, MAX_SIDE)
    rows = []
    for picture in pictures:
        check_size(picture)
        rows.append(torch.from_numpy(to_square(to_rgb(picture), size)))
    return from_bytes(torch.stack(rows))


def to_square(picture: Image.Image, size: int) -> np.ndarray:
    """Cut the middle square out of a picture in RGB and bring it to a size: (3, size, size), uint8."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    resized = square if side == size else square.resize((size, size), Image.Resampling.BICUBIC)
    return np.array(resized).transpose(2, 0, 1)


def from_bytes(rows: torch.Tensor) -> torch.Tensor:
    """Turn bytes (B, 3, H, W) into images, float32 in [-1, 1]."""
    return rows.float() / 127.5 - 1


def read_picture(path: Path) -> Image.Image:
    """Read a picture from outside: in RGB, upright, on white.

    Only a regular file is opened; see decode_picture.
    Raises: ValueError: says what is wrong with the file, which the caller names.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise ValueError(f"it is {kind}, no regular file")
    with path.open("rb") as file:
        return decode_picture(file, found.st_size)


def decode_picture(file: BinaryIO, size: int, side: int | None = None) -> Image.Image:
    """Decode a picture from outside: in RGB, upright, on white.

    Only what has at most MAX_BYTES and MAX_PIXELS is decoded, and only by the decoders of FORMATS. Animations are
    refused, since a caption does not say which of their frames it is of. Colour profiles are not applied.

    Args:
        file: of the picture alone, from its first byte.
        size: bytes of the file.
        side: pixels along each side that the caller will bring it to; a JPEG may then be decoded at a half, a quarter
            or an eighth of its size, at least twice as large as needed. None: it is decoded in full.

    Raises: ValueError: says what is wrong with the picture.
    """
    if size > MAX_BYTES:
        raise ValueError(f"it has {size} bytes and at most {MAX_BYTES} are read: make it smaller")
    try:
        with Image.open(file, formats=FORMATS) as picture:
            check_size(picture)
            if getattr(picture, "is_animated", False) and picture.format in ("PNG", "WEBP", "GIF"):
                raise ValueError("it is an animation: save the frame that the caption is of")
            mend_transparency(picture)
            if side is not None:
                picture.draft(None, (2 * side, 2 * side))
            with _one_large if picture.width * picture.height > LARGE else contextlib.nullcontext():
                return to_rgb(picture)
    except UnidentifiedImageError:
        raise ValueError(f"cannot identify it by its content: {', '.join(FORMATS)} are read") from None
    except Exception as error:  # a damaged file makes a decoder raise anything from IndexError to zlib.error
        raise ValueError(brief(error) if str(error) else type(error).__name__) from error


def check_size(picture: Image.Image) -> None:
    """Refuse, before it is decoded, a picture of too many pixels.

    Raises: ValueError: gives its size and the limit.
    """
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"a picture has {width} x {height} pixels and at most {MAX_PIXELS} are read: make it smaller")


def mend_transparency(picture: Image.Image) -> None:
    """Bring the one colour that a PNG calls transparent to the levels that Pillow gives its pixels."""
    packed = picture.tile[0][3] if picture.format == "PNG" and picture.tile else None
    transparent = picture.info.get("transparency")
    if packed == "RGB;16B" and transparent is not None:
        raise ValueError("it has 16 bits a channel and a transparent colour: save it with an alpha channel")
    if packed in SHALLOW and isinstance(transparent, int):
        picture.info["transparency"] = transparent * SHALLOW[packed]


def to_rgb(picture: Image.Image) -> Image.Image:
    """Bring a picture of any mode to RGB without losing what it means.

    It is turned upright as its camera says, laid on white where it is transparent, and greys of more than 8 bits are
    scaled: 65535 is white in Pillow's modes I;16 and I, 1 in F.

    Raises: ValueError: when greys lie outside that range, or the mode is unknown to Pillow.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in GREYS:
        picture = shallow_grey(picture)
    if picture.mode == "La":
        picture = picture.convert("LA")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def shallow_grey(picture: Image.Image) -> Image.Image:
    """Bring greys of 16 or 32 bits to 8, with an alpha channel where one grey is transparent."""
    values, white = np.asarray(picture).astype(np.float32), GREYS[picture.mode]
    if not (values.min() >= 0 and values.max() <= white):  # true of NaN as well
        raise ValueError(
            f"greys of mode {picture.mode} from {values.min():.4g} to {values.max():.4g} have no known white; "
            f"0 to {white} was expected"
        )
    transparent = picture.info.get("transparency")
    alpha = None if transparent is None else np.where(values == transparent, 0, 255).astype(np.uint8)
    values *= 255 / white
    grey = Image.fromarray(np.round(values, out=values).astype(np.uint8))
    if alpha is not None:
        grey.putalpha(Image.fromarray(alpha))
    return grey
