"""Pictures from outside keep what they mean, or are refused; nothing but the meant decoders sees them."""

import io
import itertools
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minidalle.data.images import MAX_BYTES, MAX_PIXELS, decode_picture, from_pil, read_picture, to_pil, to_rgb

WHITE = (255, 255, 255)


def png(width: int, height: int, depth: int, kind: int, rows: list[bytes], **chunks: bytes) -> bytes:
    """Write a PNG by hand: depth and kind as in IHDR, rows packed, further chunks before the pixels."""
    parts = [b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)]
    parts += [name.encode() + content for name, content in chunks.items()]
    parts += [b"IDAT" + zlib.compress(b"".join(b"\0" + row for row in rows)), b"IEND"]
    framed = (struct.pack(">I", len(p) - 4) + p + struct.pack(">I", zlib.crc32(p)) for p in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def read(path, content: bytes) -> Image.Image:
    path.write_bytes(content)
    return read_picture(path)


def corners() -> Image.Image:
    """Make a picture of 4 x 6 whose corners are red, green, blue and black, on grey."""
    picture = Image.new("RGB", (4, 6), (128, 128, 128))
    for place, color in (((0, 0), "red"), ((3, 0), "lime"), ((0, 5), "blue"), ((3, 5), "black")):
        picture.putpixel(place, Image.new("RGB", (1, 1), color).getpixel((0, 0)))
    return picture


# What a camera's orientation asks for, as numpy does it: (rows, columns, channels) to upright
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize(("orientation", "kind"), [*itertools.product(UPRIGHT, ("PNG", "WEBP", "JPEG"))])
def test_a_picture_is_turned_as_its_camera_says(tmp_path, orientation, kind):
    exif, large = Image.Exif(), corners().resize((64, 96), Image.Resampling.NEAREST)
    exif[0x0112] = orientation
    options = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}[kind]
    large.save(tmp_path / "turned", kind, exif=exif, **options)
    found, expected = np.array(read_picture(tmp_path / "turned")), UPRIGHT[orientation](np.array(large))
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (60 if kind == "JPEG" else 0)  # JPEG rings at edges


@given(st.tuples(*[st.integers(0, 255)] * 4))
def test_what_is_transparent_lies_on_white(pixel):
    *color, alpha = pixel
    expected = [255 + (value - 255) * alpha / 255 for value in color]
    found = to_rgb(Image.new("RGBA", (1, 1), pixel)).getpixel((0, 0))
    assert np.abs(np.subtract(found, expected)).max() <= 1
    grey = to_rgb(Image.new("LA", (1, 1), (color[0], alpha))).getpixel((0, 0))
    assert np.abs(np.array(grey) - expected[0]).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
@pytest.mark.parametrize("kind", ["memory", "PNG", "WEBP"])
def test_a_clear_picture_is_white_and_a_solid_one_its_color_in_every_mode(tmp_path, mode, kind):
    via = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, mode)
    for alpha, expected in ((0, WHITE), (255, (60, 60, 60))):
        picture = Image.new("RGBA", (8, 8), (60, 60, 60, alpha)).convert("LA" if via == "LA" else "RGBA")
        if mode == "PA":
            picture = Image.new("P", (8, 8), 0)
            picture.putpalette([60, 60, 60])
            picture = picture.convert("PA") if alpha else picture
            if not alpha:
                picture.info["transparency"] = 0
        elif mode != picture.mode:
            picture = picture.convert(mode)
        if kind == "memory":
            assert to_rgb(picture).getpixel((4, 4)) == expected
        elif mode in ("RGBA", "LA") or (mode == "PA" and not alpha and kind == "PNG"):
            picture.save(tmp_path / "p", kind, **({"lossless": True} if kind == "WEBP" else {}))
            assert read_picture(tmp_path / "p").getpixel((4, 4)) == expected


def test_a_palette_may_be_clear_in_part(tmp_path):
    rows = [bytes([0, 1, 2])]
    content = png(3, 1, 8, 3, rows, PLTE=bytes([255, 0, 0, 0, 255, 0, 0, 0, 255]), tRNS=bytes([0, 127]))
    found = [read(tmp_path / "p", content).getpixel((x, 0)) for x in range(3)]
    assert found[0] == WHITE and found[2] == (0, 0, 255)
    assert found[1][0] == found[1][2] and abs(found[1][0] - 128) <= 1 and found[1][1] == 255


def test_the_clear_color_of_a_gif_is_white(tmp_path):
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((0, 0), 0)
    picture.save(tmp_path / "p", "GIF", transparency=1)
    found = read_picture(tmp_path / "p")
    assert found.getpixel((3, 3)) == WHITE and found.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("depth", "row", "levels"),
    [
        (1, bytes([0b01000000]), [0, 1]),
        (2, bytes([0b00011011]), [0, 1, 2, 3]),
        (4, bytes([0x07, 0xAF]), [0, 7, 10, 15]),
        (8, bytes([0, 100, 255]), [0, 100, 255]),
        (16, struct.pack(">4H", 0, 257, 25700, 65535), [0, 257, 25700, 65535]),
    ],
)
def test_greys_of_any_depth_keep_their_level_and_the_one_that_is_clear(tmp_path, depth, row, levels):
    for clear in levels:
        for chunks in ({}, {"tRNS": struct.pack(">H", clear)}):
            picture = read(tmp_path / "p", png(len(levels), 1, depth, 0, [row], **chunks))
            found = [picture.getpixel((x, 0)) for x in range(len(levels))]
            grey = [round(255 * level / (2**depth - 1)) for level in levels]
            expected = [255 if chunks and level == clear else g for level, g in zip(levels, grey, strict=True)]
            assert found == [(g, g, g) for g in expected], (clear, chunks)


def test_colors_of_16_bits_keep_their_level_but_not_one_that_is_clear(tmp_path):
    row = struct.pack(">6H", 65535, 0, 0, 32896, 32896, 32896)
    picture = read(tmp_path / "p", png(2, 1, 16, 2, [row]))
    assert [picture.getpixel((x, 0)) for x in range(2)] == [(255, 0, 0), (128, 128, 128)]
    with pytest.raises(ValueError, match="16 bits a channel and a transparent colour"):
        read(tmp_path / "p", png(2, 1, 16, 2, [row], tRNS=row[:6]))
    eight = png(2, 1, 8, 2, [bytes([255, 0, 0, 9, 9, 9])], tRNS=struct.pack(">3H", 9, 9, 9))
    assert [read(tmp_path / "p", eight).getpixel((x, 0)) for x in range(2)] == [(255, 0, 0), WHITE]


@given(st.integers(0, 65535))
def test_a_grey_of_16_bits_is_scaled_by_its_range(level):
    for picture in (Image.fromarray(np.full((2, 2), level, np.uint16)), Image.new("I", (2, 2), level)):
        assert to_rgb(picture).getpixel((1, 1)) == (round(level / 257),) * 3
    found = to_rgb(Image.new("F", (2, 2), level / 65535)).getpixel((1, 1))
    assert abs(found[0] - level / 257) <= 0.51


@pytest.mark.parametrize(("mode", "value"), [("I", -1), ("I", 65536), ("F", 1.5), ("F", -0.1), ("F", float("nan"))])
def test_greys_without_a_known_white_are_refused(mode, value):
    with pytest.raises(ValueError, match="have no known white"):
        from_pil([Image.new(mode, (4, 4), value)], 4)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB", "1", "L", "P", "RGBX"])
def test_other_modes_keep_their_color(mode):
    picture = Image.new("RGB", (16, 16), WHITE)
    picture = Image.merge("LAB", Image.new("RGB", (16, 16), (255, 128, 128)).split()) if mode == "LAB" else picture
    picture = picture if mode == "LAB" else picture.convert(mode)
    assert np.abs(np.array(to_rgb(picture)).astype(int) - 255).max() <= 2


def test_a_picture_in_the_colors_of_print_is_read(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "p", "JPEG", quality=100)
    red, green, blue = read_picture(tmp_path / "p").getpixel((8, 8))
    assert red > 250 and green < 5 and blue < 5


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_refused(tmp_path, kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "p", kind, save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="it is an animation: save the frame"):
        read_picture(tmp_path / "p")
    frames[1].save(tmp_path / "p", kind, save_all=True)
    assert read_picture(tmp_path / "p").getpixel((4, 4))[2] > 200


def test_a_photo_with_a_second_picture_is_no_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "p.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert read_picture(tmp_path / "p.jpg").getpixel((4, 4))[0] > 200


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "PCX", "TGA", "ICNS", "PDF", "EPS", "SGI", "DDS", "JPEG2000"])
def test_only_the_meant_decoders_run_whatever_the_name(tmp_path, kind, monkeypatch):
    path = tmp_path / "picture.png"  # a name that promises a format that is read
    Image.new("RGB", (16, 16), "red").save(path, kind)
    with pytest.raises(ValueError, match="cannot identify it by its content: PNG, JPEG, WEBP, GIF, BMP are read"):
        read_picture(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_the_content_decides_and_not_the_name(tmp_path, kind):
    path = tmp_path / "picture.eps"
    Image.new("RGB", (16, 16), "white").save(path, kind)
    assert read_picture(path).getpixel((8, 8)) == WHITE


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, kind in (("pipe", "a pipe or a device"), ("link", "a pipe or a device"), ("folder", "a directory")):
        with pytest.raises(ValueError, match=f"it is {kind}, no regular file"):
            read_picture(tmp_path / name)


def test_a_file_that_is_too_large_is_not_opened(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ValueError, match=f"has {MAX_BYTES + 1} bytes and at most {MAX_BYTES}"):
        read_picture(tmp_path / "large")


def bomb(kind: str, side: int) -> bytes:
    """Make a small file that announces side x side pixels."""
    if kind == "PNG":
        return png(side, side, 8, 2, [])
    if kind == "GIF":
        return (
            b"GIF89a"
            + struct.pack("<HHBBB", side, side, 0, 0, 0)
            + b","
            + bytes(4)
            + struct.pack("<HHBB", side, side, 0, 8)
        )
    if kind == "BMP":
        return struct.pack("<2sIII", b"BM", 54, 0, 54) + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, *[0] * 6)
    file = io.BytesIO()
    first, second = (Image.new("RGBA", (8, 8), color) for color in ("red", "blue"))
    first.save(file, "WEBP", save_all=True, append_images=[second])
    content = bytearray(file.getvalue())
    content[24:30] = (side - 1).to_bytes(3, "little") * 2  # the canvas, of which the frames may cover a part
    return bytes(content)


@pytest.mark.parametrize("side", [8193, 12_000, 16_000])
@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "WEBP"])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, kind, side, monkeypatch):
    (tmp_path / "bomb").write_bytes(bomb(kind, side))
    monkeypatch.setattr(Image.core, "new", lambda *_: pytest.fail("memory was taken"))
    with pytest.raises(ValueError, match=f"at most {MAX_PIXELS} are read|exceeds limit"):
        read_picture(tmp_path / "bomb")


@given(st.data())
def test_damage_ends_in_one_short_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damage") / "p"
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"]))
    corners().save(path, kind)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        assert read_picture(path).mode == "RGB"
    except ValueError as error:
        assert len(str(error)) <= 200 and str(error).isprintable()


@pytest.mark.parametrize(
    "images",
    [torch.zeros(3, 4, 4), torch.zeros(1, 4, 4, 3), torch.zeros(1, 1, 4, 4), torch.zeros(1, 3, 4, 4).byte()],
)
def test_what_is_no_batch_of_images_is_refused(images):
    with pytest.raises(ValueError, match=r"floats of shape \(B, 3, H, W\)"):
        to_pil(images)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_picture_that_is_not_finite_is_refused(value):
    images = torch.zeros(2, 3, 4, 4)
    images[1, 2, 3, 0] = value
    with pytest.raises(ValueError, match="not finite"):
        to_pil(images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_any_float_type_become_pictures(dtype):
    assert to_pil(torch.ones(1, 3, 2, 2, dtype=dtype))[0].getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("size", [0, -1, 4097, 10**9, 2.5, True, "16"])
def test_a_size_that_makes_no_sense_is_refused_before_memory_is_taken(size):
    with pytest.raises(ValueError, match="The size of the pictures is"):
        from_pil([corners()], size)


@pytest.mark.parametrize("side", [20, 32, 60])
def test_a_jpeg_is_decoded_small_but_never_smaller_than_twice_what_is_asked_for(side):
    rows, columns = np.mgrid[0:400, 0:640] / 640
    picture = Image.fromarray((255 * np.stack([rows, columns, 1 - columns], axis=2)).astype(np.uint8))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95)
    drawn = decode_picture(io.BytesIO(file.getvalue()), len(file.getvalue()), side)
    assert 2 * side <= min(drawn.size) < 400
    torch.testing.assert_close(from_pil([drawn], side), from_pil([picture], side), rtol=0, atol=0.05)
