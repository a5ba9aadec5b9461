"""Emoji drawn from a colour font: one made here, with three coloured squares as its emoji."""

import json
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from minidalle.data.emoji import EmojiSet
from minidalle.data.emoji_font import read_names, write_emoji

FACE, PIZZA, APPLE, TWIN = "\N{GRINNING FACE}", "\N{SLICE OF PIZZA}", "\N{RED APPLE}", "\N{GREEN APPLE}"
NAMES = {FACE: "grinning face", PIZZA: "pizza", APPLE: "red apple", TWIN: "green apple", "#": "hash sign", "q": "q"}


def square(left: int, size: int = 500):
    """Draw a square of a glyph."""
    pen = TTGlyphPen(None)
    pen.moveTo((left, 0))
    for point in ((left, size), (left + size, size), (left + size, 0)):
        pen.lineTo(point)
    pen.closePath()
    return pen.glyph()


@pytest.fixture
def font(tmp_path) -> Path:
    """Make a font whose face is red, whose pizza is green, and whose apples are the same blue square."""
    names = [".notdef", "face", "pizza", "apple", "layer"]
    build = FontBuilder(1000, isTTF=True)
    build.setupGlyphOrder(names)
    build.setupCharacterMap(
        {ord(FACE): "face", ord(PIZZA): "pizza", ord(APPLE): "apple", ord(TWIN): "apple", 35: "face"}
    )
    build.setupGlyf({name: square(100 * i) for i, name in enumerate(names)})
    build.setupHorizontalMetrics(dict.fromkeys(names, (1200, 0)))
    build.setupHorizontalHeader(ascent=900, descent=-200)
    build.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    build.setupOS2()
    build.setupPost()
    build.setupCOLR({name: [("layer", i)] for i, name in enumerate(("face", "pizza", "apple"))})
    build.setupCPAL([[(1, 0, 0, 1), (0, 1, 0, 1), (0, 0, 1, 1)]])
    build.save(tmp_path / "font.ttf")
    return tmp_path / "font.ttf"


@pytest.fixture
def names(tmp_path) -> Path:
    """Write names as CLDR does: those of one character apart from those of several."""
    entries = {characters: {"tts": [name], "default": [name, "thing"]} for characters, name in NAMES.items()}
    for language, shown in (("en", entries), ("de", {PIZZA: {"tts": ["Pizza auf Deutsch"]}})):
        folder = tmp_path / "names" / language
        folder.mkdir(parents=True)
        content = {"annotations": {"identity": {"language": language}, "annotations": shown}}
        (folder / "annotations.json").write_text(json.dumps(content))
    return tmp_path / "names"


def test_a_set_is_drawn_in_colour_with_its_names(tmp_path, font, names):
    assert write_emoji(font, names, tmp_path / "out", size=16) == 3  # of four: two are the same picture
    emojis = EmojiSet(tmp_path / "out")
    assert [emoji.name for emoji in emojis.emojis] == ["red apple", "pizza", "grinning face"]
    assert emojis.emojis[0].also == ("green apple",) and emojis.emojis[1].keywords == ("pizza", "thing")
    colours = {emoji.name: emojis.images([n])[0].amin((1, 2)) for n, emoji in enumerate(emojis.emojis)}
    assert [int(colours[name].argmax()) for name in ("grinning face", "pizza", "red apple")] == [0, 1, 2]
    assert emojis.images().amax() == 1  # on white


def test_pictures_stand_in_the_middle(tmp_path, font, names):
    write_emoji(font, names, tmp_path / "out", size=32)
    dark = EmojiSet(tmp_path / "out").images([0])[0].amin(0) < 0
    rows, columns = dark.any(1).nonzero().flatten(), dark.any(0).nonzero().flatten()
    assert abs(int(rows[0] + rows[-1]) - 31) <= 2 and abs(len(rows) - len(columns)) <= 1


@pytest.mark.parametrize(
    "content", ["", "[]", '{"annotations": []}', '{"annotations": {"annotations": {"a": {"tts": []}}}}']
)
def test_a_file_of_other_things_is_no_list_of_names(tmp_path, content):
    (tmp_path / "annotations.json").write_text(content)
    with pytest.raises(ValueError, match=r"annotations\.json holds no names of emoji"):
        read_names(tmp_path)


def test_what_cannot_be_used_is_named(tmp_path, font, names):
    with pytest.raises(ValueError, match="holds no file annotations"):
        write_emoji(font, tmp_path / "out", tmp_path / "out")
    (tmp_path / "no.ttf").write_bytes(b"no font")
    for path in (tmp_path / "no.ttf", tmp_path / "missing.ttf"):
        with pytest.raises(ValueError, match=f"{path.name} cannot be used as a colour font"):
            write_emoji(path, names, tmp_path / "out")
    with pytest.raises(ValueError, match="size of the pictures"):
        write_emoji(font, names, tmp_path / "out", size=4096)
    (names / "en" / "annotations.json").write_text(json.dumps({"annotations": {"annotations": {"q": {"tts": ["q"]}}}}))
    with pytest.raises(ValueError, match="draws none of the 1 named emoji in colour"):
        write_emoji(font, names, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_shipped_atlas_is_whole():
    from minidalle.data.emoji import shipped_emojis

    emojis = shipped_emojis()
    assert emojis.image_size == 32 and emojis.pixels.shape == (3771, 3, 32, 32)
    border = emojis.pixels[:, :, [0, -1]].float().mean()
    assert border > 235  # white, but for flags and squares that reach the edge
