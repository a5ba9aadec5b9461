"""Pictures to tensors and back, and nothing but the middle square of what is no square."""

import pytest
import torch
from PIL import Image

from minidalle.data.images import from_pil, to_pil


def test_pictures_survive_the_way_there_and_back():
    images = torch.rand(5, 3, 24, 24) * 2 - 1
    again = from_pil(to_pil(images), 24)
    assert again.dtype == torch.float32
    assert (again - images).abs().max() <= 1 / 127.5  # a grey level
    assert torch.equal(from_pil(to_pil(again), 24), again)


def test_the_ends_of_the_range_are_black_and_white_and_more_is_clipped():
    values = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).repeat(3, 5, 1)[None]
    row = [to_pil(values)[0].getpixel((x, 0))[0] for x in range(5)]
    assert row == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "RGB"])
def test_any_kind_of_picture_is_cut_to_its_middle_square(mode):
    picture = Image.new("RGB", (30, 10), "red")
    picture.paste((0, 0, 255), (10, 0, 20, 10))
    (image,) = from_pil([picture.convert(mode)], 8)
    assert image.shape == (3, 8, 8)
    assert image.flatten(1).std(1).max() < 1e-6  # one colour: none of the red to the left and right


@pytest.mark.parametrize(("size", "box"), [((30, 10), (10, 0, 20, 10)), ((10, 30), (0, 10, 10, 20))])
def test_the_middle_is_cut_out_and_not_a_corner(size, box):
    picture = Image.new("RGB", size, "red")
    picture.paste((0, 0, 255), box)
    (image,) = from_pil([picture], 10)
    assert torch.equal(image[:, 0, 0], torch.tensor([-1.0, -1.0, 1.0]))
    assert (image == image[:, :1, :1]).all()  # blue alone, and none of the red on either side
