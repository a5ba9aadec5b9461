"""Search of a collection of pictures by a caption or by a picture: embedded once by CLIP, asked by dot products.

Paper: Radford et al. 2021, sec. 3.1 and appendix E (retrieval).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from minidalle.checks import texts, whole_number
from minidalle.data.images import from_pil, read_picture
from minidalle.device import autocast
from minidalle.pipeline import MiniDalle

CHUNK = 64  # pictures embedded together; more are slower on a CPU, whose caches they overflow
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")


class Found(NamedTuple):
    """A picture that was found."""

    row: int  # of the index
    cosine: float  # of its z_image with what was asked


@torch.no_grad()
def embed_images(pipe: MiniDalle, images: torch.Tensor) -> torch.Tensor:
    """Embed pictures (N, 3, H, W) in [-1, 1], some at a time: z_image (N, D), unit norm, on the CPU."""
    with autocast(pipe.device):
        return torch.cat([pipe.clip.encode_image(part.to(pipe.device)).float().cpu() for part in images.split(CHUNK)])


def nearest(z_image: torch.Tensor, z: torch.Tensor, number: int) -> list[Found]:
    """Find the rows of z_image (N, D) nearest to z (D,), the nearest first; both of unit norm."""
    number = whole_number(number, "The number of pictures to find")
    cosines, rows = (z_image @ z.cpu().float()).topk(min(number, len(z_image)))
    return [Found(*pair) for pair in zip(rows.tolist(), cosines.tolist(), strict=True)]


@torch.no_grad()
def embed_query(pipe: MiniDalle, query: str | torch.Tensor) -> torch.Tensor:
    """Embed what is searched for: a caption, or a picture (3, H, W) in [-1, 1] of CLIP's size. Returns: (D,)."""
    if isinstance(query, torch.Tensor):
        return embed_images(pipe, query[None])[0]
    return pipe.encode(pipe.captions(texts(query, "The query")[:1])).z_text[0].cpu()


class Stamp(NamedTuple):
    """By what a file is known to be as it was."""

    size: int  # bytes
    modified: int  # nanoseconds


@dataclass
class Folder:
    """The pictures of a folder and of those in it, embedded.

    refresh() brings it up to date: what is new or was changed is embedded, what is gone is dropped.
    """

    pipe: MiniDalle
    root: Path
    paths: list[Path] = field(default_factory=list)  # in the order of their names
    z_image: torch.Tensor = field(default_factory=lambda: torch.empty(0, 0))  # (N, D), a row for each path
    skipped: dict[Path, str] = field(default_factory=dict)  # what cannot be read, and why
    _known: dict[Path, tuple[Stamp, torch.Tensor | None]] = field(default_factory=dict)

    def __post_init__(self):
        self.refresh()

    def refresh(self) -> int:
        """Look at the folder again; give the number of pictures that were embedded.

        Raises: ValueError: when it is no folder, or holds no picture that can be read.
        """
        if not self.root.is_dir():
            raise ValueError(f"{self.root} is no folder: name one that holds pictures.")
        there = dict(stamps(self.root))
        self._known = {path: kept for path, kept in self._known.items() if there.get(path) == kept[0]}
        self.skipped = {path: why for path, why in self.skipped.items() if path in self._known}
        new = [path for path in there if path not in self._known]
        count = sum(self._embed(new[start : start + CHUNK], there) for start in range(0, len(new), CHUNK))
        self.paths = [path for path in there if path in self._known and self._known[path][1] is not None]
        if not self.paths:
            why = next(iter(self.skipped.items()), None)
            found = f"; {why[0].name}, for example: {why[1]}" if why else f" ({', '.join(SUFFIXES)} are looked at)"
            raise ValueError(f"{self.root} holds no picture that can be read{found}.")
        self.z_image = torch.stack([self._known[path][1] for path in self.paths])
        return count

    def _embed(self, paths: list[Path], there: dict[Path, Stamp]) -> int:
        """Read and embed files, and note which cannot be read; give the number that could."""
        size, images, good = self.pipe.clip.config.image_size, [], []
        for path in paths:
            try:
                images.append(from_pil([read_picture(path)], size))
                good.append(path)
            except FileNotFoundError:  # deleted since the folder was listed
                continue
            except (ValueError, OSError) as error:
                self.skipped[path] = getattr(error, "strerror", None) or str(error)
                self._known[path] = there[path], None
        rows = embed_images(self.pipe, torch.cat(images)) if good else ()
        self._known |= {path: (there[path], z) for path, z in zip(good, rows, strict=True)}
        return len(good)

    def ask(self, query: str | torch.Tensor, number: int = 16) -> list[Found]:
        """Find the pictures nearest to a caption or to a picture, as the folder is now."""
        self.refresh()
        return nearest(self.z_image, embed_query(self.pipe, query), number)


def stamps(root: Path) -> Iterator[tuple[Path, Stamp]]:
    """List the picture files below a folder, in the order of their names; links to folders are not followed."""
    for folder, inner, names in os.walk(root):
        inner.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix.lower() in SUFFIXES:
                try:
                    found = path.stat()
                except OSError:  # deleted meanwhile, or a link to nothing
                    continue
                yield path, Stamp(found.st_size, found.st_mtime_ns)
