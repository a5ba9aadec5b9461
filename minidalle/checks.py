"""What users hand over, brought to the types that the package computes with, or refused in a sentence."""

import math
import operator
from collections.abc import Sequence

import torch

NO_NUMBER = (bool, str, bytes, bytearray)


def whole_number(value: object, what: str, low: int = 1, high: int | None = None) -> int:
    """Take a whole number of any type of whole numbers: Python's, numpy's, a tensor of one element.

    Args:
        value: what was given; truth values and texts are no numbers, 2.0 is no whole one.
        what: its name, as the sentence says it.
        low, high: the least and the greatest that is allowed.

    Raises: ValueError: says what was found and what was expected.
    """
    found = plain(value)
    try:
        number = None if isinstance(found, bool) else operator.index(found)
    except (TypeError, RuntimeError):
        number = None
    if number is None or number < low or (high is not None and number > high):
        bounds = f" from {low} to {high}" if high is not None else f", {low} or more,"
        raise ValueError(f"{what} is {shown(value)}; a whole number{bounds} was expected.")
    return number


def finite_number(value: object, what: str) -> float:
    """Take a finite number of any real type; truth values and texts are none.

    Raises: ValueError: says what was found.
    """
    found = plain(value)
    try:
        number = math.nan if isinstance(found, NO_NUMBER) else float(found)
    except (TypeError, ValueError, ArithmeticError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{what} is {shown(value)}; a finite number was expected.")
    return number


def texts(value: object, what: str) -> list[str]:
    """Take one text or several, in a list, a tuple or an array.

    Raises: ValueError: when there is none, or something that is no text (its place is named).
    """
    found = plain(value)
    if isinstance(found, str):
        return [str(found)]
    found = found.tolist() if callable(getattr(found, "tolist", None)) else found
    if not isinstance(found, Sequence) or isinstance(found, NO_NUMBER):
        raise ValueError(f"{what} is of type {type(value).__name__}; a text or a list of texts was expected.")
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise ValueError(f"{what} number {i} is of type {type(text).__name__}; a text was expected.")
    if not found:
        raise ValueError(f"{what} is an empty list; one text or more was expected.")
    return [str(text) for text in found]


def plain(value: object) -> object:
    """Bring what numpy or torch wrap around a single value to Python's own type; anything else stays as it is."""
    try:
        return value.item() if math.prod(getattr(value, "shape", ())) == 1 else value
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return value


def shown(value: object) -> str:
    """Show a value in at most 60 printable characters."""
    try:
        text = " ".join(repr(plain(value)).split())
    except Exception:  # whatever a foreign __repr__ raises; Python itself refuses whole numbers of 4,300 digits
        text = f"a {type(value).__name__} that cannot be shown"
    return "".join(c if c.isprintable() else "?" for c in text[:60])


def check_noise(generator: object, pictures: int) -> None:
    """Raise ValueError unless noise comes from one generator, or from a list with one for each picture."""
    several = isinstance(generator, Sequence) and not isinstance(generator, str)
    for found in generator if several else [generator]:
        if not isinstance(found, torch.Generator) and (several or found is not None):
            kind = type(found).__name__
            raise ValueError(f"generator is of type {kind}; a torch.Generator, or a list of them, was expected.")
    if several and len(generator) != pictures:
        raise ValueError(f"There are {len(generator)} generators and {pictures} pictures: give one for each.")
