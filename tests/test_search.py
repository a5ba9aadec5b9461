"""Search: the right order, and folders that change or hold what cannot be read."""

import os

import pytest
import torch
from PIL import Image

from minidalle import search
from minidalle.data.images import to_pil
from minidalle.search import Folder, embed_images, embed_query, nearest


@pytest.fixture
def folder(tmp_path):
    for number, picture in enumerate(to_pil(pictures(5))):
        (tmp_path / "inner").mkdir(exist_ok=True)
        picture.save(tmp_path / ("inner" if number % 2 else "") / f"{number}.png")
    return tmp_path


def pictures(number: int) -> torch.Tensor:
    return torch.rand(number, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def names(folder: Folder) -> list[str]:
    return sorted(path.name for path in folder.paths)


def test_the_nearest_rows_come_first():
    z_image = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert nearest(z_image, torch.tensor([0.0, 1.0]), 2) == [(1, 1.0), (2, pytest.approx(0.8))]
    assert [row for row, _ in nearest(z_image, torch.tensor([1.0, 0.0]), 99)] == [0, 2, 1]
    with pytest.raises(ValueError, match="The number of pictures to find is 0"):
        nearest(z_image, torch.tensor([1.0, 0.0]), 0)


def test_pictures_are_embedded_in_parts_as_at_once(pipe, monkeypatch):
    images = pictures(5)
    monkeypatch.setattr(search, "CHUNK", 2)
    torch.testing.assert_close(embed_images(pipe, images), pipe.clip.encode_image(images), atol=0.01, rtol=0)


def test_a_picture_finds_itself_and_a_caption_the_nearest_to_its_z_text(pipe, folder):
    index = Folder(pipe, folder)
    assert index.z_image.shape == (5, 16) and names(index) == [f"{n}.png" for n in range(5)]
    best = index.ask(pictures(5)[3], 2)[0]
    assert index.paths[best.row] == folder / "inner" / "3.png" and best.cosine > 0.999
    cosines = index.z_image @ pipe.encode(["a red circle"]).z_text[0]
    assert [found.row for found in index.ask("a red disk", 5)] == cosines.argsort(descending=True).tolist()


def test_queries_are_understood_or_refused(pipe):
    torch.testing.assert_close(embed_query(pipe, "a big donut"), pipe.encode(["a large ring"]).z_text[0])
    with pytest.raises(ValueError, match="elephant"):
        embed_query(pipe, "an elephant")
    with pytest.raises(ValueError, match="of shape"):
        embed_query(pipe, torch.zeros(3, 8, 8))


# Folders


def test_a_folder_that_changes_is_followed(pipe, folder):
    index = Folder(pipe, folder)
    assert index.refresh() == 0
    (folder / "0.png").unlink()
    to_pil(-pictures(5)[2:3])[0].save(folder / "2.png")
    os.utime(folder / "2.png", ns=(1, 1))
    to_pil(-pictures(5)[1:2])[0].save(folder / "new.png")
    found = index.ask(-pictures(5)[2], 1)[0]
    assert index.paths[found.row] == folder / "2.png" and found.cosine > 0.999
    assert names(index) == ["1.png", "2.png", "3.png", "4.png", "new.png"]
    assert index.refresh() == 0


def test_a_file_that_goes_while_the_folder_is_read_is_left_out(pipe, folder, monkeypatch):
    listed = dict(search.stamps(folder))
    monkeypatch.setattr(search, "stamps", lambda root: iter(listed.items()))
    (folder / "4.png").unlink()
    index = Folder(pipe, folder)
    assert names(index) == ["0.png", "1.png", "2.png", "3.png"] and not index.skipped


def test_pictures_that_cannot_be_read_are_named_and_left_out_until_they_are_mended(pipe, folder):
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture is expected here")
    index = Folder(pipe, folder)
    assert names(index) == [f"{n}.png" for n in range(5)]
    assert {path.name for path in index.skipped} == {"broken.png", "empty.jpg"}
    assert "cannot identify it" in index.skipped[folder / "broken.png"]
    Image.new("RGB", (20, 30), "red").save(folder / "broken.png")
    assert index.refresh() == 1
    assert "broken.png" in names(index) and {path.name for path in index.skipped} == {"empty.jpg"}


def test_a_folder_without_a_readable_picture_is_refused(pipe, tmp_path):
    with pytest.raises(ValueError, match=r"holds no picture that can be read \(\.png"):
        Folder(pipe, tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(
        ValueError, match=r"holds no picture that can be read; broken\.png, for example: cannot identify"
    ):
        Folder(pipe, tmp_path)
    with pytest.raises(ValueError, match=r"absent is no folder: name one"):
        Folder(pipe, tmp_path / "absent")
    with pytest.raises(ValueError, match=r"broken\.png is no folder"):
        Folder(pipe, tmp_path / "broken.png")


def test_a_folder_that_loses_all_its_pictures_is_refused_when_it_is_asked(pipe, folder):
    index = Folder(pipe, folder)
    for path in index.paths:
        path.unlink()
    with pytest.raises(ValueError, match="holds no picture"):
        index.ask("a red circle")
