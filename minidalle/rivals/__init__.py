"""Rival families of text-to-image models, each small and whole, in a file of its own.

All are trained by the package's own loop, kept as its checkpoints, drawn and measured by its commands. A new one is a
file with a FAMILY, and a line below.
"""

from pathlib import Path

from minidalle.checkpoint import CheckpointError, find_folder
from minidalle.pipeline import MiniDalle
from minidalle.rivals import autoencoder, cascade, dalle1, flow, flow_few, gan, latent, latent_clip, lstm, vae
from minidalle.rivals.family import Family, Rival
from minidalle.rivals.unclip import VARIANTS, load_variant
from minidalle.training.stages import register

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        autoencoder.FAMILY,
        cascade.FAMILY,
        dalle1.FAMILY,
        flow.FAMILY,
        flow_few.FAMILY,
        gan.FAMILY,
        latent.FAMILY,
        latent_clip.FAMILY,
        lstm.FAMILY,
        vae.FAMILY,
    )
}

for family in FAMILIES.values():
    register(family.stages)


def from_pretrained(source: str | Path = "tiny", device: str | None = None) -> MiniDalle | Rival:
    """Load whatever draws: unCLIP or a rival.

    Args:
        source: a name of shipped weights, unclip.VARIANTS (tiny, with either prior or none) among them; a folder of a
            run; or, where a folder holds more than one system, the file of the model that draws.
        device: cuda, mps or cpu; None: the best that is there.

    Raises: CheckpointError: when there is none, more than one, or a piece of it cannot be used.
    """
    if isinstance(source, str) and source in VARIANTS:
        return load_variant(source, device=device)
    folder = folder_of(source)
    if is_file_of_rival(source):
        return Rival.from_pretrained(FAMILIES[Path(source).stem], folder, device)
    found = rivals_in(folder)
    if not found or (folder / "decoder.safetensors").is_file():
        return MiniDalle.from_pretrained(folder, device)
    if len(found) > 1:
        files = " or ".join(str(folder / f"{name}.safetensors") for name in found)
        raise CheckpointError(f"{folder} holds {' and '.join(found)}: name the one that is meant, {files}.")
    return Rival.from_pretrained(FAMILIES[found[0]], folder, device)


def folder_of(source: str | Path) -> Path:
    """Give the folder that from_pretrained loads a source from."""
    if isinstance(source, str) and source in VARIANTS:
        return find_folder("tiny")
    return find_folder(Path(source).parent if is_file_of_rival(source) else source, ("clip", *FAMILIES))


def is_file_of_rival(source: str | Path) -> bool:
    """Tell whether a source names the file of a rival, and not a folder."""
    path = Path(source) if isinstance(source, str | Path) else Path()
    return path.suffix == ".safetensors" and path.stem in FAMILIES


def rivals_in(folder: Path) -> list[str]:
    """Name the rivals that a folder holds; one that is but a stage of another is not named."""
    found = [name for name in FAMILIES if (folder / f"{name}.safetensors").is_file()]
    return [name for name in found if not any(name in FAMILIES[other].stages for other in found if other != name)]
