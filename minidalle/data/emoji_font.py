"""Emoji drawn from a colour font, each with its English name: the pictures of the emoji world, made from two sources.

The font is any whose colours Pillow draws (Noto Color Emoji, say); the names are those of Unicode's Common Locale Data
Repository (CLDR), as its JSON packages hold them. What is made is one picture with all emoji side by side (atlas.png)
and a list of names (emoji.json).
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from minidalle.checks import whole_number

STRIKE = 109  # size at which Noto Color Emoji has its bitmaps
COLUMNS = 64  # pictures in a row of the atlas
PARTS = ("annotations", "annotationsDerived")  # CLDR keeps the names of sequences in a package of their own
COMPONENTS = "".join(map(chr, (*range(0x1F3FB, 0x1F400), *range(0x1F9B0, 0x1F9B4))))  # tones and hair alone
MAX_NAMES = 32 * 2**20  # bytes of a file of names


def write_emoji(font: Path, names: Path, out: Path, size: int = 32) -> int:
    """Draw every emoji of a font that has a name, and write the set.

    Args:
        font: a colour font file.
        names: folder that holds CLDR's annotations of one language, in files named annotations.json, at any depth.
        out: folder to write; made when missing.
        size: pixels along each side of a picture.

    Returns: how many were drawn. Of pictures that are equal the one of the fewest characters is kept, with the names
        of all.
    Raises: ValueError: when font or names cannot be used, or Pillow cannot put sequences of characters together.
    """
    size = whole_number(size, "The size of the pictures", 8, 128)
    if not features.check("raqm"):
        raise ValueError("This Pillow was built without Raqm, which puts emoji of several characters together.")
    known, drawn, same = read_names(names), {}, defaultdict(list)
    for characters, picture in draw_all(
        font, sorted(known, key=lambda characters: (len(characters), characters)), size
    ):
        if picture.tobytes() in drawn:
            same[picture.tobytes()].append(known[characters][0])
        drawn.setdefault(picture.tobytes(), (characters, picture))
    if not drawn:
        raise ValueError(f"{font} draws none of the {len(known)} named emoji in colour: name a colour emoji font.")
    rows = -(-len(drawn) // COLUMNS)
    atlas = Image.new("RGB", (COLUMNS * size, rows * size), "white")
    for number, (_, picture) in enumerate(drawn.values()):
        atlas.paste(picture, (number % COLUMNS * size, number // COLUMNS * size))
    out.mkdir(parents=True, exist_ok=True)
    atlas.save(out / "atlas.png", optimize=True)
    entries = [[characters, *known[characters], same[pixels]] for pixels, (characters, _) in drawn.items()]
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    (out / "emoji.json").write_text(f'{{"size": {size}, "emoji": [\n{lines}\n]}}\n', encoding="utf-8")
    return len(drawn)


def read_names(folder: Path) -> dict[str, tuple[str, list[str]]]:
    """Read CLDR's annotations: for each sequence of characters its name and its keywords.

    Raises: ValueError: when there are none, or a file holds something else.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    paths = [folder] if folder.is_file() else sorted(folder.rglob("annotations.json"))
    english = [path for path in paths if path.parent.name == "en"] or paths
    for path in english:
        try:
            if path.stat().st_size > MAX_NAMES:
                raise ValueError(f"it has more than {MAX_NAMES} bytes")
            content = json.loads(path.read_text(encoding="utf-8"))
            (part,) = (content[key] for key in PARTS if key in content)
            for characters, entry in part["annotations"].items():
                if "tts" in entry:
                    found.setdefault(
                        characters, (str(entry["tts"][0]), [str(word) for word in entry.get("default", [])])
                    )
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds no names of emoji as CLDR's JSON has them ({error!r:.80}).") from error
    if not found:
        raise ValueError(f"{folder} holds no file annotations.json: name a folder of CLDR's annotations.")
    return found


def draw_all(font: Path, sequences: list[str], size: int) -> Iterator[tuple[str, Image.Image]]:
    """Draw what a font has as one coloured glyph, on white; everything else is left out.

    Raises: ValueError: when the font cannot be read at the size of its bitmaps.
    """
    try:
        face = ImageFont.truetype(font, STRIKE, layout_engine=ImageFont.Layout.RAQM)
    except OSError as error:
        raise ValueError(f"{font} cannot be used as a colour font ({error}): name another file.") from error
    width = face.getlength("\N{GRINNING FACE}")
    side = round(width)
    for characters in sequences:
        plain = len(characters) == 1 and (characters in COMPONENTS or ord(characters) < 0xA9)  # digits, #, *
        if plain or abs(face.getlength(characters) - width) > 1:
            continue
        canvas = Image.new("RGBA", (side, side), (255, 255, 255, 0))
        ImageDraw.Draw(canvas).text((0, 0), characters, font=face, embedded_color=True)
        rows = np.flatnonzero(np.asarray(canvas)[..., 3].any(1))
        if not len(rows):
            continue
        middle = round((side - 1 - rows[0] - rows[-1]) / 2)  # a line of text is not drawn in the middle of a square
        white = Image.new("RGBA", (side, side), "white")
        white.alpha_composite(canvas, (0, max(0, middle)), (0, max(0, -middle)))
        yield characters, white.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
