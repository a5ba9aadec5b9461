"""minidalle edit and minidalle search: files in, a sheet out, and one sentence for what makes no sense."""

import argparse

import pytest
import torch
from PIL import Image

from minidalle.commands.edits import add_edits, box_mask, read_mask
from minidalle.commands.terminal import Parser
from minidalle.data.images import to_pil


@pytest.fixture
def run(micro_run):
    """Run a command of the micro system."""

    def act(*words: object) -> argparse.Namespace:
        top = Parser(prog="minidalle")
        commands = top.add_subparsers(dest="command", required=True)

        def command(name, run, summary, computes=True):
            sub = commands.add_parser(name, help=summary)
            sub.set_defaults(run=run)
            if computes:
                sub.add_argument("--device")
            return sub

        add_edits(command)
        args = top.parse_args([*map(str, words), "--checkpoint", str(micro_run), "--device", "cpu"])
        args.run(args)
        return args

    return act


@pytest.fixture
def file(tmp_path):
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    to_pil(picture)[0].save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def size_of(file) -> tuple[int, int]:
    with Image.open(file) as picture:
        return picture.size


@pytest.mark.parametrize(
    ("words", "pictures"),
    [
        (("vary", "FILE", "-n", 3), 4),
        (("vary", "FILE", "-n", 2, "--strength", 0.5, "--prompt", "a red circle"), 3),
        (("interpolate", "FILE", "FILE", "-n", 3, "--noise", "fixed"), 3),
        (("change", "FILE", "a red circle", "a blue circle"), 2),
        (("inpaint", "FILE", "a red circle", "--box", 0, 0, 0.5, 1), 2),
        (("compose", "a red shape", "a circle", "-n", 2), 2),
    ],
)
def test_every_edit_writes_a_sheet(run, file, tmp_path, words, pictures):
    out = tmp_path / "new" / "sheet.png"
    words = [file if word == "FILE" else word for word in words]
    run("edit", *words, "--steps", 2, "--scale", 1, "--out", out)
    assert size_of(out) == (pictures * 17 + 1, 18)


def test_a_continued_picture_is_longer(run, file, tmp_path):
    out = tmp_path / "long.png"
    run(
        "edit",
        "outpaint",
        file,
        "a red circle",
        "--side",
        "left",
        "--pixels",
        4,
        "--steps",
        2,
        "--scale",
        1,
        "--out",
        out,
    )
    assert size_of(out) == (20, 16)


def test_the_same_seed_writes_the_same_file(run, file, tmp_path):
    outs = [tmp_path / f"{n}.png" for n in range(3)]
    for seed, out in zip((1, 1, 2), outs, strict=True):
        run("edit", "vary", file, "-n", 1, "--steps", 2, "--seed", seed, "--out", out)
    first, same, other = (out.read_bytes() for out in outs)
    assert first == same != other


def test_search_names_what_it_found_and_what_it_left_out(run, file, tmp_path, capsys):
    (file.parent / "broken.png").write_bytes(b"none")
    run("search", file.parent, "a red circle", "--scale", 1, "--out", tmp_path / "sheet.jpg")
    said = capsys.readouterr().out
    assert "picture.png" in said and "left out: broken.png: " in said and "1 pictures were searched" in said
    assert size_of(tmp_path / "sheet.jpg")[0] == 16
    (tmp_path / "sheet.jpg").unlink()
    run("search", file.parent, "--picture", file, "--out", tmp_path / "sheet.png", "-n", 1)
    assert "  1 1.000 picture.png" in capsys.readouterr().out


# Masks


def test_a_box_is_given_in_shares_of_the_sides():
    mask = box_mask([0.25, 0.5, 0.75, 1.0], 8)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[4:, 2:6] = True
    assert torch.equal(mask, expected)


@pytest.mark.parametrize(
    "box", [[0, 0, 0, 1], [0.5, 0, 0.2, 1], [0, 0, 1, 1.1], [-0.1, 0, 1, 1], [0, float("nan"), 1, 1]]
)
def test_boxes_without_extent_or_beyond_the_picture_are_refused(box):
    with pytest.raises(ValueError, match="--box is"):
        box_mask(box, 8)


def test_a_mask_is_white_where_it_is_painted_and_as_large_as_the_picture(tmp_path):
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 16, 32))
    mask.save(tmp_path / "mask.png")
    found = read_mask(tmp_path / "mask.png", (32, 32), 16)
    assert found.shape == (16, 16) and found[:, :8].all() and not found[:, 8:].any()
    with pytest.raises(ValueError, match=r"has 32 x 32 pixels, the picture 20 x 10: make them equal"):
        read_mask(tmp_path / "mask.png", (20, 10), 16)


# What makes no sense


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("edit", "vary", "FILE", "--out", "picture.txt"), "--out is picture.txt"),
        (("edit", "vary", "FILE", "--scale", 0), "--scale is 0"),
        (("edit", "vary", "FILE", "-n", 0), "-n is 0"),
        (("edit", "vary", "FILE", "--eta", 2), "eta is 2; 0 to 1 was expected"),
        (("edit", "vary", "FILE", "--strength", -1), "strength is -1; 0 to 1 was expected"),
        (("edit", "vary", "FILE", "--prior", "best"), '"best" is no prior'),
        (("edit", "change", "FILE", "a red circle", "a red elephant"), "elephant"),
        (("edit", "inpaint", "FILE", "a red circle", "--box", 0, 0, 1, 1), "The mask covers everything"),
        (("edit", "inpaint", "FILE", "a red circle", "--box", 0, 0, 0.01, 0.01), "The mask is empty"),
        (("search", "FOLDER"), "Search by a caption, or by --picture FILE"),
        (("search", "FOLDER", "a red circle", "--picture", "FILE"), "give one of the two"),
        (("search", "FILE", "a red circle"), "is no folder"),
        (("search", "FOLDER", "an elephant"), "elephant"),
    ],
)
def test_mistakes_are_named(run, file, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    known = {"FILE": file, "FOLDER": file.parent}
    with pytest.raises(ValueError, match=message):
        run(*(known.get(word, word) for word in words))


def test_files_that_are_no_pictures_are_named(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"notes\.png cannot be read: cannot identify it"):
        run("edit", "vary", tmp_path / "notes.png")
    with pytest.raises(FileNotFoundError):
        run("edit", "vary", tmp_path / "absent.png")
