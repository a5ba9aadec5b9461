"""What commands share: printable text, paths, presets, and refusals in one sentence."""

import argparse
import contextlib
import os
import sys
import textwrap
from pathlib import Path

from minidalle.checkpoint import brief
from minidalle.training.recipes import PRESETS, Preset


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


def preset_of(args: argparse.Namespace) -> Preset:
    """Look up the preset that was asked for."""
    if args.preset not in PRESETS:
        raise ValueError(f'"{args.preset}" is no preset; choose one of {", ".join(PRESETS)}.')
    return PRESETS[args.preset]
