"""Collections in every format, made by hand."""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image

COLORS = ("red", "lime", "blue", "yellow", "black", "white", "cyan", "magenta")
CAPTIONS = {
    f"{number}.png": (f"a {color} square, number {number}", f"{color} all over {number}")
    for number, color in enumerate(COLORS * 3)
}


def picture(color: str, size: tuple[int, int] = (24, 24), kind: str = "PNG") -> bytes:
    """Make the bytes of a picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, kind)
    return file.getvalue()


def put(folder: Path, names: Iterable[str] = CAPTIONS) -> Path:
    """Write the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(picture(COLORS[int(Path(name).stem) % len(COLORS)]))
    return folder


def metadata_jsonl(folder: Path) -> Path:
    rows = [json.dumps({"file_name": name, "text": text}) for name, said in CAPTIONS.items() for text in said]
    (put(folder) / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def metadata_jsonl_in_parts(folder: Path) -> Path:
    """As datasets with splits have it: a folder and an index for each."""
    for part, names in (("train", list(CAPTIONS)[:16]), ("test", list(CAPTIONS)[16:])):
        rows = [json.dumps({"file_name": name, "captions": CAPTIONS[name]}) for name in names]
        (put(folder / part, names) / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def table(path: Path, header: tuple[str, str], delimiter: str = ",", first: str = "") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(first)
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows((name, text) for name, said in CAPTIONS.items() for text in said)


def metadata_csv(folder: Path) -> Path:
    table(put(folder) / "metadata.csv", ("file_name", "text"))
    return folder


def metadata_csv_of_a_spreadsheet(folder: Path) -> Path:
    """With a byte order mark and semicolons."""
    table(put(folder) / "metadata.csv", ("file_name", "text"), ";", "\ufeff")
    return folder


def sidecars(folder: Path) -> Path:
    for name, said in CAPTIONS.items():
        (put(folder / "inner", [name]) / name).with_suffix(".txt").write_text("\n".join(said) + "\n")
    return folder


def coco(folder: Path) -> Path:
    numbers = {name: 100 + i for i, name in enumerate(CAPTIONS)}
    values = {
        "images": [{"id": number, "file_name": name} for name, number in numbers.items()],
        "annotations": [
            {"image_id": numbers[name], "caption": text} for name, said in CAPTIONS.items() for text in said
        ],
    }
    put(folder / "train2017")
    (folder / "annotations").mkdir()
    (folder / "annotations" / "captions_train2017.json").write_text(json.dumps(values))
    return folder


def karpathy(folder: Path) -> Path:
    images = [
        {"filename": name, "filepath": "train2014", "sentences": [{"raw": text} for text in said]}
        for name, said in CAPTIONS.items()
    ]
    put(folder / "train2014")
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images}))
    return folder


def flickr8k(folder: Path) -> Path:
    lines = [f"{name}#{k}\t{text}\n" for name, said in CAPTIONS.items() for k, text in enumerate(said)]
    put(folder / "Flicker8k_Dataset")
    (folder / "Flickr8k_text").mkdir()
    (folder / "Flickr8k_text" / "Flickr8k.token.txt").write_text("".join(lines))
    return folder


def flickr8k_csv(folder: Path) -> Path:
    put(folder / "Images")
    table(folder / "captions.txt", ("image", "caption"))
    return folder


def flickr30k_csv(folder: Path) -> Path:
    lines = [f"{name}| {k}| {text}\n" for name, said in CAPTIONS.items() for k, text in enumerate(said)]
    put(folder / "flickr30k_images")
    (folder / "results.csv").write_text("image_name| comment_number| comment\n" + "".join(lines))
    return folder


def tar(path: Path, files: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> Path:
    """Write an archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def shards(folder: Path) -> Path:
    """As img2dataset writes them: 00000.tar with a picture, a text and JSON for each sample."""
    for shard in range(3):
        files = {}
        for name, said in list(CAPTIONS.items())[shard * 8 :][:8]:
            stem = f"{shard:05d}{int(Path(name).stem):04d}"
            files[f"{stem}.png"] = picture(COLORS[int(Path(name).stem) % len(COLORS)])
            files[f"{stem}.txt"] = "\n".join(said).encode()
            files[f"{stem}.json"] = json.dumps({"caption": said[0], "status": "success"}).encode()
        tar(folder / f"{shard:05d}.tar", files)
        (folder / f"{shard:05d}_stats.json").write_text("{}")
    return folder


MAKERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    maker.__name__: (maker, name)
    for maker, name in (
        (metadata_jsonl, "image folder with metadata.jsonl"),
        (metadata_jsonl_in_parts, "image folder with metadata.jsonl"),
        (metadata_csv, "image folder with metadata.csv"),
        (metadata_csv_of_a_spreadsheet, "image folder with metadata.csv"),
        (sidecars, "pictures with a text beside each"),
        (coco, "COCO captions"),
        (karpathy, "COCO captions"),
        (flickr8k, "Flickr tokens"),
        (flickr8k_csv, "table of captions"),
        (flickr30k_csv, "table of captions"),
        (shards, "webdataset shards"),
    )
}
