"""The card of the world of signs, and its experiments: systems that are known by construction come out as they are."""

import json
import random
from dataclasses import replace

import pytest
import torch
from conftest import MICRO

from minidalle.clip import CLIP
from minidalle.decoder import Decoder
from minidalle.evaluation import edits, sign_card, sign_experiments
from minidalle.evaluation.metrics import Rate
from minidalle.evaluation.sign_experiments import (
    KNOWN,
    clip_reads,
    draw_each,
    misspellings,
    nonsense,
    spelled,
    spelling,
    typography,
)
from minidalle.evaluation.tables import to_json
from minidalle.pipeline import MiniDalle
from minidalle.prior import DiffusionPrior
from minidalle.training.recipes import fitted
from minidalle.world.letters import GLYPHS
from minidalle.world.scenes import SHAPES
from minidalle.world.sign_reader import read
from minidalle.world.sign_words import TOKENIZER, parse, sign_language, write
from minidalle.world.signs import CELLS_OF, LABELS, WORDS, Facts, Poster, render

NAMES = {word: shape for shape, word in LABELS.items()}


@pytest.fixture(scope="module")
def untrained() -> MiniDalle:
    """Make a system of pictures of 32 pixels whose weights are random."""
    torch.manual_seed(0)
    preset = fitted(MICRO, TOKENIZER)
    unet = replace(preset.models["decoder"].unet, image_size=32)
    models = (
        CLIP(replace(preset.models["clip"], image_size=32)),
        DiffusionPrior(preset.models["prior"]),
        Decoder(replace(preset.models["decoder"], unet=unet)),
    )
    return MiniDalle(*models, TOKENIZER, rephrase=sign_language({}), world={"name": "signs"})


def one_hot(shapes: list[str | None]) -> torch.Tensor:
    """Embed shapes; what is none of them as nothing."""
    return torch.stack([torch.tensor([float(shape == other) for other in SHAPES]) for shape in shapes])


class Seer:
    """A system whose CLIP goes by the sign where there is one with a shape's name, if it reads; and draws what it saw.

    Its z_image is the shape that CLIP takes a picture for.
    """

    def __init__(self, reads: bool):
        self.reads, self.clip = reads, self
        self.logit_scale = torch.tensor(4.0)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """See pictures."""
        return one_hot([(NAMES.get(f.word) if self.reads else None) or f.shape for f in read(images)])

    def encode(self, captions: list[str]):
        """Read captions, each of one shape."""
        return type("Encoded", (), {"z_text": one_hot([parse(caption).shape for caption in captions])})

    def draw(self, z_image: torch.Tensor) -> torch.Tensor:
        """Draw one large object of the shape of each z_image, with no sign."""
        shapes = [SHAPES[int(z.argmax())] for z in z_image]
        return render([Poster(Facts(1, shape, "red", "black"), ((0.0, -0.375),)) for shape in shapes])


@pytest.fixture
def seer(monkeypatch, request) -> Seer:
    """Put a system that is known by construction in the place of networks."""
    made = Seer(request.param)
    monkeypatch.setattr(sign_experiments, "embed", lambda pipe, images: pipe.embed(images))
    monkeypatch.setattr(sign_experiments, "draw_each", lambda pipe, z_image, seed: pipe.draw(z_image))
    return made


@pytest.mark.parametrize("seer", [True], indirect=True)
def test_a_clip_that_reads_is_fooled_by_every_lying_sign(seer):
    found = typography(seer, n=40)
    for sign in ("none", "true", "nonsense"):
        assert found[sign]["CLIP shown"] == Rate(40, 40) == found[sign]["decoder shown"]
        assert found[sign]["CLIP written"].hits == 0 and found[sign]["probability shown"] > 0.99
    lying = found["lying"]
    assert lying["CLIP written"] == Rate(40, 40) == lying["decoder written"]
    assert lying["CLIP shown"].hits == lying["decoder shown"].hits == lying["decoder other"].hits == 0
    assert lying["probability written"] > 0.99 and lying["probability shown"] < 0.01
    assert found["none"]["decoder word"] == Rate(40, 40) and lying["decoder word"].hits == 0  # it draws no signs


@pytest.mark.parametrize("seer", [False], indirect=True)
def test_a_clip_that_looks_is_never_fooled(seer):
    for found in typography(seer, n=40).values():
        assert found["CLIP shown"] == Rate(40, 40) == found["decoder shown"]
        assert found["CLIP written"].hits == found["decoder written"].hits == 0


def test_words_and_letters_are_counted_at_their_places():
    found = spelled(["fox", "fish", "dog", "cat", "sun"], ["fox", "fi?h", "dogs", None, "su"])
    assert found == {"word": Rate(1, 5), "letters": Rate(3 + 3 + 3 + 0 + 2, 3 + 4 + 3 + 3 + 3)}


def test_nonsense_is_no_word():
    made = {nonsense(random.Random(seed)) for seed in range(300)}
    assert len(made) > 250 and not made & KNOWN and all(len(word) == 4 for word in made)


def test_the_true_picture_is_spelled_right_and_random_weights_spell_nothing(untrained):
    found = spelling(untrained, "held out", n=6)
    assert found["true picture"]["word"] == Rate(6, 6) and found["true picture"]["letters"].share == 1
    ways = {"true z_image", "true z_image, caption", "prior's z_image", "prior's z_image, caption", "caption"}
    asked = {f"CLIP, {of}{among}" for of in ("true picture", "prior's z_image") for among in ("", ", misspelt")}
    assert set(found) == ways | asked | {"true picture"}
    assert all(found[way]["word"].hits == 0 for way in ways)


class Reader:
    """A system that embeds a word by its first letters, one number for each."""

    def __init__(self, letters: int):
        self.letters = letters

    def embed(self, words: list[str]) -> torch.Tensor:
        """Embed words."""
        rows = [
            [float(letter == there) for there in word.ljust(4)[: self.letters] for letter in GLYPHS] for word in words
        ]
        return torch.tensor(rows)

    def encode(self, captions: list[str]):
        """Read the words that captions quote."""
        return type("Encoded", (), {"z_text": self.embed([parse(caption).word for caption in captions])})


def test_a_clip_that_reads_letter_by_letter_tells_misspelt_words_and_one_that_knows_words_by_their_start_does_not():
    said = [Facts(2, "ring", "red", "black", word) for word in WORDS["held out"]]
    words = [facts.word for facts in said]
    others = {"all": [sum(WORDS.values(), ())] * len(said), "misspelt": [misspellings(word) for word in words]}
    starts = [sum(word[:3] == other[:3] for other in others["all"][0]) for word in words]
    by_start = {"all": starts.count(1), "misspelt": sum(len(word) <= 3 for word in words)}
    assert 0 < by_start["all"] < 8 and by_start["misspelt"] == 1
    for letters, hits in ((4, {"all": 8, "misspelt": 8}), (3, by_start)):
        reader = Reader(letters)
        for name in others:
            assert clip_reads(reader, reader.embed(words), said, others[name]) == Rate(hits[name], 8), (letters, name)


def test_misspellings_are_all_words_with_one_letter_changed():
    found = misspellings("cat")
    assert len(set(found)) == len(found) == 3 * 25 and "cat" not in found
    assert {sum(a != b for a, b in zip(word, "cat", strict=True)) for word in found} == {1}


def test_the_words_of_another_split_are_asked_for(untrained, monkeypatch):
    asked = []
    monkeypatch.setattr(sign_experiments, "spelled", lambda words, shown: asked.append(set(words)) or {})
    for split, words in WORDS.items():
        asked.clear()
        spelling(untrained, split, n=4)
        assert all(one <= set(words) for one in asked) and len(asked) == 6


def test_each_way_to_draw_has_conditions_and_noise_of_its_own(untrained, monkeypatch):
    text = untrained.encode([write(Facts(n, "ring", "red")) for n in (1, 2)])
    z = torch.nn.functional.normalize(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    with torch.no_grad():  # or an untrained decoder draws the same whatever it is given
        for parameter in untrained.decoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    pictures = [
        draw_each(untrained, *given)
        for given in ((z, "a"), (z, "b"), (z, "a", text), (None, "a", text), (z, "a", text, 3.0))
    ]
    assert all(p.shape == (2, 3, 32, 32) and float(p.abs().max()) <= 1 for p in pictures)
    for i, first in enumerate(pictures):
        assert all(not torch.allclose(first, other, atol=1e-3) for other in pictures[:i])
    other_words = untrained.encode([write(Facts(n, "cross", "blue")) for n in (3, 4)])
    assert not torch.allclose(draw_each(untrained, None, "a", other_words), pictures[3], atol=1e-3)
    monkeypatch.setattr(edits, "CHUNK", 1)
    for given, whole in (((z, "a", text), pictures[2]), ((None, "a", text), pictures[3])):
        assert torch.allclose(draw_each(untrained, *given), whole, atol=1e-4)


def test_a_score_counts_what_was_said_alone():
    asked = [Facts(2, "ring", None, None, "fox"), Facts(1, None, "red")]
    shown = [Facts(2, "ring", "blue", "black", "f?x"), Facts(1, "cross", "red", "white")]
    assert sign_card.score(asked, shown) == {
        "exact": Rate(1, 2), "count": Rate(2, 2), "shape": Rate(1, 1), "color": Rate(1, 1), "word": Rate(0, 1),
        "letters": Rate(2, 3),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["plain", "quote"])
@pytest.mark.parametrize("split", ["held out", "test"])
def test_what_is_asked_for_is_of_its_split(kind, split):
    asked = sign_card.ask(kind, split, 100, "seed")
    if kind == "quote":
        assert {facts.word for facts in asked} <= set(WORDS[split])
    else:
        stated = [{(facts.count, facts.shape), (facts.count, facts.color)} for facts in asked]
        assert all(cells & CELLS_OF[split] for cells in stated), "a prompt states nothing that is of its split"
        assert set().union(*stated) >= CELLS_OF[split] and all(facts.word is None for facts in asked)
    assert asked == sign_card.ask(kind, split, 100, "seed") != sign_card.ask(kind, split, 100, "other")


def test_the_card_is_whole_small_and_readable(untrained):
    card = sign_card.sign_card(untrained, n=3, num_inference_steps=2, prior_num_inference_steps=2)
    assert list(card["following"]) == [f"{what}, {split}" for what in sign_card.ASKED for split in ("seen", "held out")]
    assert list(card["spelling"]) == ["seen", "held out"] and card["world"] == "signs"
    assert len(json.dumps(json.loads(to_json(card)))) < 10_000
    text = sign_card.to_text(card)
    assert max(map(len, text.splitlines())) <= 132 and "Typographic attack" in text and "true z_image, caption" in text
