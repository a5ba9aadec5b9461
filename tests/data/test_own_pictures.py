"""The card of pictures of your own: rates that can be checked by hand, copies found, and advice that fits."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import MICRO
from made import metadata_jsonl
from test_picture_source import folder_of

from minidalle.cli import main
from minidalle.data.pictures import Pictures
from minidalle.evaluation.own_pictures import advice, found, measure, nearest_training, own_card, to_text
from minidalle.pipeline import MiniDalle
from minidalle.training.run import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train the micro preset on sixty pictures; the collection, the system, and where both lie."""
    root = tmp_path_factory.mktemp("own")
    folder = folder_of(root / "data", [f"picture of {'abcdefghijklmnopqrstuvwxyz'[i % 26]} {i}" for i in range(60)])
    pictures = Pictures(folder, cache=root / "cache")
    train(MICRO, "quick", root / "run", collection=pictures)
    return pictures, MiniDalle.from_pretrained(root / "run", "cpu"), root


def test_a_caption_is_found_where_it_is_nearest_and_equal_captions_are_one():
    z = torch.eye(4)
    assert found(z, z, list("abcd")).share == 1.0
    assert found(z, z[[1, 0, 2, 3]], list("abcd")).hits == 2
    assert found(z, z[[1, 0, 2, 3]], ["a", "A", "c", "d"]).hits == 4


def test_the_nearest_training_picture_is_the_nearest_of_all_and_of_their_mirror_images():
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (9, 3, 4, 4), np.uint8)
    images = torch.tensor(rows[[2, 5]]) / 127.5 - 1
    assert nearest_training(images, rows, range(9)).abs().max() < 1e-3
    assert nearest_training(images.flip(3), rows, range(9)).abs().max() < 1e-3
    far = nearest_training(images, rows, [0, 1])
    for image, distance in zip(images, far, strict=True):
        both = [x for row in rows[:2] for x in (row, row[:, :, ::-1])]
        expected = min((image - torch.tensor(row.copy()) / 127.5 + 1).square().mean().sqrt() for row in both)
        assert torch.isclose(distance, expected, atol=1e-4)


class Perfect:
    """A system whose CLIP knows every picture and caption, and whose prior and decoder may be broken."""

    device = torch.device("cpu")

    def __init__(self, batch, broken: str = ""):
        self.images, self.tokens, self.broken = batch.images, batch.tokens, broken
        self.z = F.normalize(torch.randn(len(batch.captions), 64, generator=torch.Generator().manual_seed(0)), dim=1)
        self.clip = self

    def encode_text(self, tokens, mask):
        from minidalle.layers import TextEncoding

        numbers = [(self.tokens == row).all(1).nonzero()[0, 0] for row in tokens]
        z = self.z[torch.stack(numbers)]
        return TextEncoding(z.roll(1, 0) if self.broken == "CLIP" else z, z[:, None], mask)

    def encode_image(self, images):
        return self.z[torch.cdist(images.flatten(1), self.images.flatten(1)).argmin(1)]

    def sample_prior(self, text, generator):
        return text.z_text.roll(1, 0) if self.broken == "prior" else text.z_text

    def decode(self, text, z_image, generator):
        from types import SimpleNamespace

        images = self.images[(z_image @ self.z.T).argmax(1)]
        yield SimpleNamespace(x_prev=images.roll(1, 0) if self.broken == "decoder" else images)


@pytest.mark.parametrize(
    ("broken", "rates"),
    [
        ("", {"CLIP": 1, "prior": 1, "decoder": 1, "all": 1}),
        ("CLIP", {"CLIP": 0, "prior": 1, "decoder": 1, "all": 1}),
        ("prior", {"CLIP": 1, "prior": 0, "decoder": 1, "all": 0}),
        ("decoder", {"CLIP": 1, "prior": 1, "decoder": 0, "all": 0}),
    ],
)
def test_the_part_that_is_broken_has_the_low_rate(trained, broken, rates):
    batch = trained[0].examples("training", 16, 20)
    batch = type(batch)(batch.images, batch.tokens, batch.mask, batch.captions)
    measured, images = measure(Perfect(batch, broken), batch, seed=0)
    assert {part: rate.share for part, rate in measured.items()} == rates and images.shape == batch.images.shape
    card = {part: rate.to_json() for part, rate in measured.items()} | {"different captions": 20}
    expected = {"": "every part", "CLIP": "CLIP does not", "prior": "the prior does", "decoder": "the decoder does"}
    assert advice(card).startswith(expected[broken])


def test_a_card_of_a_trained_system_is_whole(trained):
    pictures, pipe, _ = trained
    card = own_card(pipe, pictures, n=5, num_steps=2)
    assert card == json.loads(json.dumps(card)) and card["n"] == 5 and card["held out by"] == "caption"
    assert card["held out"]["CLIP"]["n"] == card["training"]["all"]["n"] == 5
    text = to_text(card)
    assert "chance 20.0 %" in text and "Advice: " in text and len(text.splitlines()) == 9
    assert own_card(pipe, pictures, n=5, num_steps=2) == card


def test_a_system_that_draws_training_pictures_is_found_to_copy(trained, monkeypatch):
    pictures, pipe, _ = trained
    copies = pictures.examples("training", 16, 6)

    def copy_all(pipe, batch, seed, **options):
        return {part: found(torch.eye(6), torch.eye(6), batch.captions) for part in "CLIP prior decoder all".split()}, (
            copies.images
        )

    monkeypatch.setattr("minidalle.evaluation.own_pictures.measure", copy_all)
    card = own_card(pipe, pictures, n=6)
    assert card["copies"]["share"] == 1.0 and card["nearest training picture"]["drawn"] < 0.01
    assert card["nearest training picture"]["real"] > 0.3


def test_a_system_of_something_else_is_refused(trained, tmp_path):
    other = Pictures(metadata_jsonl(tmp_path / "data"), cache=tmp_path / "cache")
    with pytest.raises(ValueError, match=r"was trained on something else than .*data as it is now"):
        own_card(trained[1], other)


def test_the_command_prints_the_card(trained, capsys, monkeypatch):
    _, _, root = trained
    monkeypatch.setenv("MINIDALLE_CACHE", str(root / "cache"))
    arguments = ["evaluate", str(root / "run"), "--data", str(root / "data"), "-n", "4", "--steps", "1"]
    assert main([*arguments, "--device", "cpu"]) == 0
    assert "Which of 4 captions is it?" in capsys.readouterr().out
    assert main([*arguments, "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[str(root / "run")]["n"] == 4
