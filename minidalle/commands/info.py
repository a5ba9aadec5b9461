"""minidalle info: what is installed, found and shipped."""

import argparse
from pathlib import Path

import torch

from minidalle.checkpoint import CheckpointError, brief, load_model, own_version, read_header
from minidalle.device import half_precision, pick_device
from minidalle.rivals import FAMILIES, folder_of, rivals_in
from minidalle.training.stages import KNOWN, STACK, STAGES
from minidalle.world.captions import TOKENIZER, known_words


def info(args: argparse.Namespace) -> None:
    """Print versions, device, words, and where a checkpoint comes from."""
    device = pick_device(args.device)
    precision = str(half_precision(device) or torch.float32).removeprefix("torch.")
    print(f"minidalle {own_version()}, torch {torch.__version__}, device {device}, training precision {precision}")
    folder, unusable = folder_of(args.checkpoint), []
    kinds, wanted = kinds_of(folder)
    print(f"words: {words_of(folder, wanted)}")
    for kind in kinds:
        try:
            model, header = load_model(KNOWN[kind].model_class, folder)
        except CheckpointError as error:
            print(f"{kind}: {error}")
            unusable += [kind] if kind in wanted else []
            continue
        count = sum(p.numel() for p in model.parameters()) / 1e6
        keys = ("preset", "recipe", "seed", "seconds", "pictures")
        origin = ", ".join(f"{key} {brief(header[key])}" for key in keys if key in header)
        print(f"{kind}: {count:.2f} M parameters, {origin}, sha256 {header['sha256'][:12]}")
    if unusable:
        missing = " and ".join(unusable)
        raise CheckpointError(f"{folder} draws nothing without a usable {missing}: train it, or name another folder.")


def kinds_of(folder: Path) -> tuple[list[str], list[str]]:
    """Name the models that a folder is asked for, and those that it cannot draw without.

    A folder of rivals is asked for theirs, and for CLIP, which some of them choose by; any other for unCLIP's.
    """
    rivals = rivals_in(folder)
    wanted = [kind for name in rivals for kind in FAMILIES[name].drawn]
    if not rivals or (folder / "decoder.safetensors").is_file():
        return list(dict.fromkeys([*STAGES, *wanted])), list(dict.fromkeys([*STACK, *wanted]))
    return list(dict.fromkeys(["clip"] * (folder / "clip.safetensors").is_file() + wanted)), wanted


def words_of(folder: Path, kinds: list[str]) -> str:
    """Say which words a system knows; byte pairs know all."""
    for kind in kinds:
        try:
            tokenizer = read_header(folder / f"{kind}.safetensors", kind).get("tokenizer")
        except CheckpointError:
            continue  # said below, for each model
        if isinstance(tokenizer, dict) and tokenizer.get("kind") == "bpe":
            return f"any, as {len(tokenizer.get('merges', ()))} merges of byte pairs; few mean something to it"
        if isinstance(tokenizer, dict) and tokenizer.get("words") != list(TOKENIZER.words):
            return " ".join(map(str, tokenizer.get("words", ()))) or "none"
    return " ".join(known_words())
