"""The commands that start from pictures: minidalle edit, minidalle search."""

import argparse
from pathlib import Path

import torch
from PIL import Image

from minidalle import edits
from minidalle.checkpoint import brief
from minidalle.checks import whole_number
from minidalle.commands.terminal import check_picture, path, source
from minidalle.data.images import from_pil, read_picture
from minidalle.evaluation.pictures import check_pixels, grid
from minidalle.inpaint import inpaint as paint_region
from minidalle.inpaint import outpaint as paint_beyond
from minidalle.pipeline import PRIORS, MiniDalle
from minidalle.search import Folder

EXAMPLES = {
    "edit": 'minidalle edit change picture.png "a red circle" "a blue circle" --out blue.png',
    "search": 'minidalle search data/scenes "a red circle" --out found.png',
}
MAX_SCALE = 64
COLUMNS = 8  # pictures in a row of a written file
THRESHOLD = 128  # from which a grey of a mask counts as white
NAMED = 3  # files that cannot be read, of which more are only counted


def add_edits(command) -> None:
    """Describe both commands."""
    sub = command("edit", run_edit, "change pictures, or draw a picture of several captions", computes=False)
    actions = sub.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, run, summary: str) -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=summary, description=summary)
        one.set_defaults(edit=run)
        return one

    one = action("vary", vary, "draw variations of a picture, which CLIP sees alike")
    one.add_argument("picture", type=path, help="file")
    one.add_argument("-n", type=int, default=8, help="how many (default %(default)s)")
    one.add_argument("--eta", type=float, default=1.0, help="share of fresh noise, 0 to 1 (default %(default)s)")
    known = "how much of what CLIP sees is drawn anew, 0 to 1 (default %(default)s)"
    one.add_argument("--strength", type=float, default=0.0, help=known)
    one.add_argument("--prompt", help="what is to stay then")
    output_options(one)
    one = action("interpolate", interpolate, "draw the pictures between two")
    one.add_argument("first", type=path, help="file")
    one.add_argument("second", type=path, help="file")
    one.add_argument("-n", type=int, default=8, help="how many, both ends included (default %(default)s)")
    one.add_argument("--noise", default="slerp", help="slerp or fixed, what becomes of x_T (default %(default)s)")
    output_options(one)
    one = action("change", change, "change a picture by the difference of two captions")
    one.add_argument("picture", type=path, help="file")
    one.add_argument("before", help="what is to change")
    one.add_argument("after", help="what it is to become")
    known = "how far to go towards the difference, 0 to 1 (default %(default)s)"
    one.add_argument("--share", type=float, default=edits.TEXT_SHARE, help=known)
    output_options(one)
    one = action("inpaint", inpaint, "paint a region of a picture anew, as a prompt says")
    one.add_argument("picture", type=path, help="file")
    one.add_argument("prompt", help="what the whole picture is to show")
    where = one.add_mutually_exclusive_group(required=True)
    where.add_argument("--mask", type=path, help="a picture, white where it is painted")
    corners = ("LEFT", "TOP", "RIGHT", "BOTTOM")
    where.add_argument("--box", type=float, nargs=4, metavar=corners, help="shares of the picture's sides, 0 to 1")
    output_options(one)
    one = action("outpaint", outpaint, "continue a picture beyond one of its sides")
    one.add_argument("picture", type=path, help="file")
    one.add_argument("prompt", help="what the continued end shows")
    one.add_argument("--side", default="right", help="left, right, top or bottom (default %(default)s)")
    one.add_argument("--pixels", type=int, default=16, help="how many are added (default %(default)s)")
    output_options(one)
    one = action("compose", compose, "draw what several captions say, each a condition of its own")
    one.add_argument("prompts", nargs="+", metavar="PROMPT", help="of one and the same picture")
    one.add_argument("-n", type=int, default=4, help="how many (default %(default)s)")
    output_options(one)

    sub = command("search", search, "find pictures of a folder by a caption or by a picture")
    sub.add_argument("folder", type=path, help="of pictures, and of folders of pictures")
    sub.add_argument("query", nargs="?", help="a caption")
    sub.add_argument("--picture", type=path, help="a file to search by, in place of a caption")
    sub.add_argument("-n", type=int, default=16, help="how many to show (default %(default)s)")
    sheet_options(sub, "found.png")


def output_options(sub: argparse.ArgumentParser) -> None:
    """Describe what every edit is asked."""
    sub.add_argument("--device", help="cuda, mps or cpu; the best that is there when not given")
    sub.add_argument("--seed", type=int, default=0, help="of the noise (default %(default)s)")
    sub.add_argument("--steps", type=int, default=edits.STEPS, help="of the decoder's sampler (default %(default)s)")
    sub.add_argument("--prior", default="diffusion", help=f"{' or '.join(PRIORS)} (default %(default)s)")
    sheet_options(sub, "edited.png")


def sheet_options(sub: argparse.ArgumentParser, out: str) -> None:
    """Describe how a sheet of pictures is written, and by which system."""
    sub.add_argument("--out", type=path, default=Path(out), help="file to write (default %(default)s)")
    known = "shipped weights or the folder of a run (default %(default)s)"
    sub.add_argument("--checkpoint", type=source, default="tiny", help=known)
    sub.add_argument("--scale", type=int, default=4, help="enlargement of the written file (default %(default)s)")


def run_edit(args: argparse.Namespace) -> None:
    """Check what all edits are asked, edit, and write the result."""
    whole_number(args.scale, "--scale", 1, MAX_SCALE)
    whole_number(getattr(args, "n", 1), "-n", 1, edits.MAX_PICTURES)
    check_picture(args.out)
    pipe = MiniDalle.from_pretrained(args.checkpoint, args.device, args.prior)
    side = args.scale * pipe.decoder.config.unet.image_size
    check_pixels(getattr(args, "n", 1) + 1, side, side)
    write(args.edit(pipe, args), args)


def write(images: torch.Tensor, args: argparse.Namespace, titles: list[str] | None = None) -> None:
    """Write pictures as one sheet."""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    grid(images, COLUMNS, args.scale, titles, gap=args.scale if len(images) > 1 else 0).save(args.out)
    print(f"Wrote {args.out}.")


def opened(file: Path) -> Image.Image:
    """Read a picture.

    Raises: ValueError: names the file and says what is wrong with it.
    """
    try:
        return read_picture(file)
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}.") from None


def picture(pipe: MiniDalle, file: Path) -> torch.Tensor:
    """Read a picture at the decoder's size: (1, 3, H, W) in [-1, 1]."""
    return from_pil([opened(file)], pipe.decoder.config.unet.image_size)


def noise(args: argparse.Namespace) -> torch.Generator:
    """Make the source of noise."""
    return torch.Generator().manual_seed(args.seed)


def vary(pipe: MiniDalle, args: argparse.Namespace) -> torch.Tensor:
    """Draw the picture and its variations."""
    image = picture(pipe, args.picture)
    more = {"strength": args.strength, "prompt": args.prompt}
    return torch.cat([image, edits.variations(pipe, image, args.n, args.eta, args.steps, noise(args), **more)[0]])


def interpolate(pipe: MiniDalle, args: argparse.Namespace) -> torch.Tensor:
    """Draw the pictures between two."""
    ends = picture(pipe, args.first), picture(pipe, args.second)
    return edits.interpolate(pipe, *ends, args.n, args.noise, args.steps, noise(args))


def change(pipe: MiniDalle, args: argparse.Namespace) -> torch.Tensor:
    """Draw the picture and the changed one."""
    image = picture(pipe, args.picture)
    return torch.cat([image, edits.text_diff(pipe, image, args.before, args.after, args.share, args.steps)])


def inpaint(pipe: MiniDalle, args: argparse.Namespace) -> torch.Tensor:
    """Draw the picture and the repainted one."""
    image = picture(pipe, args.picture)
    size = image.shape[-1]
    mask = read_mask(args.mask, opened(args.picture).size, size) if args.mask else box_mask(args.box, size)
    return torch.cat([image, paint_region(pipe, image, mask, args.prompt, args.steps, generator=noise(args))])


def read_mask(file: Path, expected: tuple[int, int], size: int) -> torch.Tensor:
    """Read a mask of a picture's size and bring it to the decoder's: (size, size) bool, True where it is white.

    Raises: ValueError: when it has another size than the picture.
    """
    mask = opened(file)
    if mask.size != expected:
        found, wanted = (f"{width} x {height}" for width, height in (mask.size, expected))
        raise ValueError(f"The mask {file} has {found} pixels, the picture {wanted}: make them equal.")
    return (from_pil([mask], size)[0].mean(0) + 1) * 127.5 >= THRESHOLD


def box_mask(box: list[float], size: int) -> torch.Tensor:
    """Mark a box given in shares of the sides: (size, size) bool.

    Raises: ValueError: when it has no extent, or reaches out of the picture.
    """
    left, top, right, bottom = box
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        found = " ".join(f"{end:g}" for end in box)
        raise ValueError(f"--box is {found}; shares of the sides with LEFT < RIGHT and TOP < BOTTOM were expected.")
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[round(top * size) : round(bottom * size), round(left * size) : round(right * size)] = True
    return mask


def outpaint(pipe: MiniDalle, args: argparse.Namespace) -> torch.Tensor:
    """Draw the continued picture."""
    image, options = picture(pipe, args.picture), {"num_steps": args.steps, "generator": noise(args)}
    return paint_beyond(pipe, image, args.prompt, args.side, args.pixels, **options)


def compose(pipe: MiniDalle, args: argparse.Namespace) -> torch.Tensor:
    """Draw pictures of all captions together."""
    return edits.compose(pipe, args.prompts, args.n, args.steps, generator=noise(args))


def search(args: argparse.Namespace) -> None:
    """Write a sheet of the pictures found, the nearest first."""
    whole_number(args.scale, "--scale", 1, MAX_SCALE)
    number = whole_number(args.n, "-n", 1, edits.MAX_PICTURES)
    check_picture(args.out)
    if (args.query is None) == (args.picture is None):
        raise ValueError("Search by a caption, or by --picture FILE: give one of the two.")
    pipe = MiniDalle.from_pretrained(args.checkpoint, args.device)
    size = pipe.clip.config.image_size
    check_pixels(number, args.scale * size, args.scale * size)
    query = args.query if args.picture is None else from_pil([opened(args.picture)], size)[0]
    folder = Folder(pipe, args.folder)
    images, titles = [], []
    for rank, found in enumerate(folder.ask(query, number), 1):
        name = folder.paths[found.row]
        images.append(from_pil([opened(name)], size))
        titles.append(f"{rank}: {found.cosine:.2f}")
        print(f"{rank:3} {found.cosine:.3f} {brief(name.relative_to(args.folder))}")
    for name, why in list(folder.skipped.items())[:NAMED]:
        print(f"left out: {brief(name.relative_to(args.folder))}: {brief(why)}")
    if len(folder.skipped) > NAMED:
        print(f"left out: {len(folder.skipped) - NAMED} more that cannot be read")
    print(f"{len(folder.paths)} pictures were searched.")
    write(torch.cat(images), args, titles)
