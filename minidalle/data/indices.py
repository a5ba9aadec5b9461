"""Files that say which picture has which caption: JSON lines, tables, JSON, Flickr's tokens, sidecar texts.

Each reader yields the name of a picture, as the file has it, and one caption. What is broken is noted as damage.
"""

import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from minidalle.data.records import Damage

NAMES = ("file_name", "filename", "image", "image_name", "image_path", "file", "path", "filepath")
CAPTIONS = ("text", "caption", "captions", "comment", "description")
DELIMITERS = ("|", "\t", ";", ",")
MAX_LINE = 64 * 2**10  # bytes, which bounds how deeply JSON can be nested as well
MAX_JSON = 192 * 2**20  # bytes of a file that is read as a whole; the largest of COCO has 144 million
SIDECARS = (".txt", ".caption")
PICTURES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp")
FOREIGN = (".heic", ".heif", ".avif", ".tif", ".tiff", ".svg", ".jp2", ".jxl")  # pictures that are not decoded
Said = tuple[str, object]  # the name of a picture, and a caption as it was found


def read_jsonl(path: Path, damage: Damage) -> Iterator[Said]:
    """Read lines of JSON with the name of a picture and a caption, or several in a list."""
    for number, line in lines_of(path, damage):
        where = f"{path.name}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            damage.add(where, f"it is no JSON ({'nested too deeply' if isinstance(error, RecursionError) else error})")
            continue
        yield from row_of(row if isinstance(row, dict) else {}, where, damage)


def read_table(path: Path, damage: Damage) -> Iterator[Said]:
    """Read a table with a line of names on top; commas, semicolons, tabs or bars part its columns."""
    header, delimiter = header_of(path)
    texts = (line.decode("utf-8", "surrogateescape") for _, line in lines_of(path, damage))
    rows = csv.reader(texts, delimiter=delimiter, skipinitialspace=True)
    first = True
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            damage.add(f"{path.name}, line {rows.line_num}", f"it is no row of a table ({error})")
            continue
        if not first and row:
            where = f"{path.name}, line {rows.line_num}"
            if len(row) == len(header):
                yield from row_of(dict(zip(header, row, strict=True)), where, damage)
            else:
                damage.add(where, f"it has {len(row)} columns; {len(header)} were expected")
        first = False


def header_of(path: Path) -> tuple[list[str], str]:
    """Read the names of a table's columns, and what parts them.

    Raises: ValueError: when none is of pictures, or none of captions.
    """
    with path.open("rb") as file:
        line = file.readline(MAX_LINE).decode("utf-8-sig", "replace")
    for delimiter in DELIMITERS:
        header = [name.strip().strip('"').lower() for name in line.split(delimiter)]
        if first_of(NAMES, header) and first_of(CAPTIONS, header):
            return header, delimiter
    raise ValueError(
        f"{path.name} begins with {line.strip()[:60]!r}; a line that names the columns was expected, such as "
        f"file_name,text: mend {path}."
    )


def row_of(row: dict, where: str, damage: Damage) -> Iterator[Said]:
    """Take a picture's name and its captions from a row, by the names of its fields."""
    name, said = first_of(NAMES, row), first_of(CAPTIONS, row)
    if name is None or said is None:
        damage.add(where, "a file_name and a text were expected")
    elif not isinstance(row[name], str):
        damage.add(where, f"{name} is of type '{type(row[name]).__name__}'; a text was expected")
    else:
        for caption in row[said] if isinstance(row[said], list) and row[said] else [row[said]]:
            yield row[name], caption


def first_of(names: tuple[str, ...], there: object) -> str | None:
    """Find the first name that is there."""
    return next((name for name in names if name in there), None)


def read_tokens(path: Path, damage: Damage) -> Iterator[Said]:
    """Read Flickr8k's and Flickr30k's file: the name of a picture, #, a number, a tab, and a caption on each line."""
    for number, line in lines_of(path, damage):
        found = re.fullmatch(r"(.+)#\d+\t(.*)", line.decode("utf-8-sig", "surrogateescape").rstrip("\r\n"))
        if found:
            yield found[1], found[2]
        else:
            damage.add(f"{path.name}, line {number}", "a name, #, a number, a tab and a caption were expected")


def read_json(path: Path, damage: Damage) -> Iterator[Said]:
    """Read one file of JSON: COCO's captions, Karpathy's form of them, a list of rows, or captions by names.

    Raises: ValueError: when it is none of these.
    """
    values = json_of(path)
    if isinstance(values, dict) and isinstance(values.get("images"), list):
        yield from read_coco(path.name, values, damage)
    elif isinstance(values, list):
        for number, row in enumerate(values):
            yield from row_of(row if isinstance(row, dict) else {}, f"{path.name}, entry {number}", damage)
    elif isinstance(values, dict) and any(name.lower().endswith((*PICTURES, *FOREIGN)) for name in values):
        for name, said in values.items():
            row = {**said, "file_name": name} if isinstance(said, dict) else {"file_name": name, "text": said}
            yield from row_of(row, f"{path.name}, {name}", damage)
    else:
        raise ValueError(f"{path} holds no captions; COCO's form was expected, a list of rows, or captions by names.")


def read_coco(where: str, values: dict, damage: Damage) -> Iterator[Said]:
    """Read COCO's captions (images and annotations), or Karpathy's form of them (images with sentences)."""
    names = {}
    for number, image in enumerate(values["images"]):
        image = image if isinstance(image, dict) else {}
        name = image.get("file_name", image.get("filename"))
        if not isinstance(name, str):
            damage.add(f"{where}, image {number}", "a file_name was expected")
        elif isinstance(image.get("sentences"), list):
            below = image.get("filepath")
            for sentence in image["sentences"]:
                caption = sentence.get("raw") if isinstance(sentence, dict) else None
                yield f"{below}/{name}" if isinstance(below, str) and below else name, caption
        elif isinstance(image.get("id"), int | str):
            names[image["id"]] = name
    annotations = values.get("annotations")
    for number, said in enumerate(annotations if isinstance(annotations, list) else []):
        said = said if isinstance(said, dict) else {}
        image = said.get("image_id")
        if isinstance(image, int | str) and image in names:
            yield names[image], said.get("caption")
        else:
            damage.add(f"{where}, annotation {number}", "its image_id is that of no image")


def json_of(path: Path) -> object:
    """Read a file of JSON as a whole.

    Raises: ValueError: when it is too large or no JSON.
    """
    if (size := path.stat().st_size) > MAX_JSON:
        raise ValueError(f"{path} has {size} bytes and at most {MAX_JSON} are read: split it.")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{path} is no JSON ({reason}): mend it.") from None


def read_sidecars(root: Path, damage: Damage) -> Iterator[Said]:
    """Read pictures with a text of the same name beside each; every line of it is a caption."""
    for folder, names in walk(root, damage):
        there = set(names)
        for name in names:
            stem, ending = os.path.splitext(name)
            if ending.lower() not in (*PICTURES, *FOREIGN):
                continue
            below = (folder / name).relative_to(root).as_posix()
            sidecar = next((stem + end for end in SIDECARS if stem + end in there), None)
            if sidecar is None:
                damage.add(below, f"there is no text beside it ({', '.join('*' + end for end in SIDECARS)})")
                continue
            yield from ((below, caption) for caption in sidecar_lines(folder / sidecar, below, damage))


def sidecar_lines(path: Path, picture: str, damage: Damage) -> list[str]:
    """Read the lines of a sidecar; a fault is noted under its picture's name."""
    try:
        if path.is_symlink() or not path.is_file():
            raise ValueError("its text is a link or no regular file")
        if path.stat().st_size > MAX_LINE:
            raise ValueError(f"its text has more than {MAX_LINE} bytes")
        return captions_in(path.read_bytes())
    except (ValueError, OSError) as error:
        damage.add(picture, getattr(error, "strerror", None) or error)
        return []


def captions_in(content: bytes) -> list[str]:
    """Take the captions out of a text, one on each line.

    Raises: ValueError: when it is not in UTF-8, or empty.
    """
    try:
        lines = [line for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError("its text is not in UTF-8") from None
    if not lines:
        raise ValueError("its text is empty")
    return lines


def walk(root: Path, damage: Damage) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder from a root downwards, and the names in it, in order; hidden ones are left out."""
    for folder, inner, names in os.walk(root, onerror=lambda error: damage.add(str(error.filename), error.strerror)):
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name != "__MACOSX")
        for name in [name for name in inner if (Path(folder) / name).is_symlink()]:
            damage.add((Path(folder) / name).relative_to(root).as_posix(), "it is a link to a folder")
        yield Path(folder), sorted(name for name in names if not name.startswith("."))


def lines_of(path: Path, damage: Damage) -> Iterator[tuple[int, bytes]]:
    """Read the lines of a file that are not empty, with their numbers from 1; one that is too long is skipped."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE)
                damage.add(f"{path.name}, line {number}", f"it has more than {MAX_LINE} bytes")
            elif line.strip():
                yield number, line
