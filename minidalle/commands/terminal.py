"""What commands share: printable text, paths, presets, and refusals in one sentence."""

import argparse
import contextlib
import os
import sys
import textwrap
from pathlib import Path

from minidalle.checkpoint import brief
from minidalle.training.recipes import PRESETS, Preset

PICTURES = (".png", ".jpg", ".gif")  # what a picture can be written to


def printable(text: str, allowed: str = "") -> str:
    """Take out what would steer a terminal; a prompt or a file may have brought it."""
    return "".join(c if c.isprintable() or c in allowed else "?" for c in text)


def silence() -> None:
    """Send what is still to be printed nowhere, or Python would complain of it when it ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def told(error: OSError) -> str:
    """Say what the system refused, and for which file."""
    if error.filename is None:
        return error.strerror or str(error)
    return f"{error.filename} cannot be used ({error.strerror}): name another place."


def path(text: str) -> Path:
    """Read the name of a file or a folder; ~ is your home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{brief(text)} names the home of a user that is not known here") from None


def source(text: str) -> str:
    """Read the name of shipped weights or of a folder."""
    return str(path(text)) if text.startswith("~") else text  # a Path would lose the dot of ./tiny, your own folder


class Parser(argparse.ArgumentParser):
    """Refuses in one sentence."""

    def error(self, message: str) -> None:
        """Say what is wrong, and where help is."""
        line = printable(textwrap.shorten(message, 300, placeholder=" ..."))
        self.exit(2, f'{self.prog}: {line}; "{self.prog} --help" tells what is possible.\n')


def check_picture(file: Path, option: str = "--out", endings: tuple[str, ...] = PICTURES) -> None:
    """Refuse, before anything is drawn, a file that no picture can be written to."""
    if file.suffix.lower() not in endings or file.is_dir():
        raise ValueError(f"{option} is {file}; a file that ends in {', '.join(endings)} was expected.")


def options_of(args: argparse.Namespace) -> dict[str, float]:
    """Give what was chosen of how to draw."""
    options = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}
    return {name: value for name, value in options.items() if value is not None}


def preset_of(args: argparse.Namespace) -> Preset:
    """Look up the preset that was asked for."""
    if args.preset not in PRESETS:
        raise ValueError(f'"{args.preset}" is no preset; choose one of {", ".join(PRESETS)}.')
    return PRESETS[args.preset]
