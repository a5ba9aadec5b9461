"""The pieces of the system that a learner trains and keeps, and the shipped ones that stand in for the rest."""

from functools import lru_cache
from pathlib import Path

import torch

from minidalle import checkpoint
from minidalle.checkpoint import AccessError, CheckpointError, brief, find_folder, load_model
from minidalle.pipeline import MiniDalle
from minidalle.training.stages import STACK, STAGES

SHIPPED = "tiny"
LESSONS = {"clip": "02", "prior": "07", "ar_prior": "12", "decoder": "08", "upsampler": "09", "upsampler_2": "09"}
SYSTEM = ("clip", "prior", "decoder", "upsampler")  # what a pipeline is made of; the other prior is asked for by name


class Pieces:
    """What can be used: yours where they are complete and belong together, else the shipped ones.

    Args:
        folder: where yours are kept.
        needed: the pieces that the notebook builds on.
        smoke: whether pieces of the smoke budget, which are good for nothing, may be used.
    """

    def __init__(self, folder: Path, needed: tuple[str, ...] = (), smoke: bool = False):
        self.folder, self.needed, self.smoke = folder, needed, smoke

    def own(self, kind: str) -> dict | None:
        """Read the header of the piece that you trained; None where there is none that can be used."""
        header, fault = self._inspect(kind)
        return None if fault else header

    def fault(self, kind: str) -> str:
        """Say why the piece that you trained cannot be used; nothing where it can, or is not there."""
        return self._inspect(kind)[1]

    def _inspect(self, kind: str) -> tuple[dict | None, str]:
        header, fault = inspect(self.folder / f"{kind}.safetensors", kind)
        if header and header.get("recipe") == "smoke" and not self.smoke:
            fault = "was only a smoke test"
        return header, fault

    def clip_folder(self) -> Path:
        """Choose the CLIP: yours where all that is needed is yours and was trained with it, else the shipped one."""
        clip, others = self.own("clip"), [self.own(kind) for kind in self.needed if kind != "clip"]
        if clip and all(piece and piece.get("clip") == clip["sha256"] for piece in others):
            return self.folder
        return find_folder(SHIPPED)

    def folder_of(self, kind: str) -> Path | None:
        """Choose a piece: yours where it fits the chosen CLIP, else the shipped one; None where there is neither."""
        if kind == "clip":
            return self.clip_folder()
        piece, shipped = self.own(kind), find_folder(SHIPPED)
        chosen = checkpoint.read_header(self.clip_folder() / "clip.safetensors", "clip")["sha256"]
        if piece and ("clip" not in STAGES[kind].needs or piece.get("clip") == chosen):
            return self.folder
        return shipped if (shipped / f"{kind}.safetensors").is_file() else None

    def whose(self, kind: str) -> str:
        """Say whose piece is used, and why the shipped one where yours is there."""
        piece, clip = self.own(kind), self.own("clip")
        if self.folder_of(kind) == self.folder:
            seconds = piece.get("seconds")
            spent = f", {seconds:.0f} s of training" if isinstance(seconds, int | float) else ""
            return f"yours ({self.folder}, {brief(piece.get('recipe', 'unknown'))} budget{spent})"
        if piece is None:
            unusable = f"yours {self.fault(kind)}; " if self.fault(kind) else ""
            return f"shipped ({unusable}notebook {LESSONS[kind]} trains your own)"
        if kind == "clip":
            others = [k for k in self.needed if k != "clip"]
            missing = [k for k in others if (self.own(k) or {}).get("clip") != clip["sha256"]]
            return f"shipped (yours has no {' and no '.join(missing)} yet: notebook {LESSONS[missing[0]]})"
        return f"shipped (yours was trained with another CLIP; notebook {LESSONS[kind]} trains it again)"

    def load(self, kind: str, device: torch.device) -> tuple[torch.nn.Module, dict]:
        """Load a piece and its header, and say whose it is; the model is in eval mode and without gradients.

        Raises:
            ValueError: when there is no such piece.
            CheckpointError: when it is neither yours nor shipped.
        """
        if kind not in STAGES:
            raise ValueError(f'"{kind}" is no piece of the system; choose one of {", ".join(STAGES)}.')
        folder = self.folder_of(kind)
        if folder is None:
            raise CheckpointError(f'There is no {kind}, yours or shipped: train it by course.train("{kind}").')
        model, header = load_model(STAGES[kind].model_class, folder)
        if folder != self.folder and kind in STACK[1:] and self.clip_folder() == self.folder:
            print(f"{kind}: shipped. It knows the shipped CLIP and not yours: train it in notebook {LESSONS[kind]}.")
        else:
            print(f"{kind}: {self.whose(kind)}")
        return model.to(device).eval(), header

    def pipeline(self, device: torch.device) -> MiniDalle:
        """Put the whole system together."""
        loaded = {kind: self.load(kind, device) for kind in SYSTEM if self.folder_of(kind)}
        return MiniDalle.from_pieces(loaded, device)


def inspect(path: Path, kind: str) -> tuple[dict | None, str]:
    """Read the header of a file whose weights are undamaged, and say what is wrong with one whose are not.

    Returns: the header, None where there is none, and a fault that may follow "yours"; none where there is no file.
    """
    try:
        status = path.stat()
    except PermissionError:
        return None, "may not be read"
    except OSError:
        return None, ""
    return _inspect(path.absolute(), kind, status.st_mtime_ns, status.st_ctime_ns, status.st_size)


@lru_cache(maxsize=32)
def _inspect(path: Path, kind: str, *_: int) -> tuple[dict | None, str]:
    try:
        return load_model(STAGES[kind].model_class, path.parent)[1], ""
    except AccessError:
        return None, "may not be read"
    except CheckpointError:
        return None, "is damaged"
