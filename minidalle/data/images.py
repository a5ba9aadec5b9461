"""Pictures to tensors and back: the one place where pixel ranges change.

Models see float32 in [-1, 1], files and screens 0 to 255.
"""

import numpy as np
import torch
from PIL import Image

MAX_PIXELS = 4096 * 4096  # of a picture from outside


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """Turn images (B, 3, H, W) in [-1, 1] into pictures; values outside are clipped."""
    pixels = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return [Image.fromarray(picture) for picture in pixels.permute(0, 2, 3, 1).cpu().numpy()]


def from_pil(pictures: list[Image.Image], size: int) -> torch.Tensor:
    """Turn pictures into images (B, 3, size, size), float32 in [-1, 1]; the middle square of each is taken."""
    rows = []
    for picture in pictures:
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"a picture has {width} x {height} pixels and at most {MAX_PIXELS} are read: make it smaller"
            )
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        square = picture.convert("RGB").crop((left, top, left + side, top + side))
        resized = square if side == size else square.resize((size, size), Image.Resampling.BICUBIC)
        rows.append(torch.from_numpy(np.array(resized)).permute(2, 0, 1))
    return torch.stack(rows).float() / 127.5 - 1
