"""Prompts for the emoji world: from what people type to a caption that training has met, or a refusal that helps."""

import difflib
import re
from collections.abc import Callable

from minidalle.data.emoji import EmojiSet, all_captions, shipped_emojis
from minidalle.tokenizer import split_words

FILLER = re.compile(
    r"^(please )?((draw|show|paint|make|give|create|generate)( me)? )?"
    r"((a|an|the) )?((picture|image|drawing|emoji) of )?"
)
ARTICLES = {"a", "an", "the", "emoji"}
SAME_WORDS = {"female": "woman", "male": "man", "lady": "woman"}
TONE = re.compile(r"(medium[ -]light|medium[ -]dark|light|medium|dark)[ -]skin(ned)?( (tone|color))?\b")
MARKS = re.compile(r"[:;!?()\"“”]")


def emoji_language(world: dict) -> Callable[[str], str]:
    """Make what brings a prompt into words that a system trained on emoji knows.

    Args:
        world: what the models say of their world; the words are those of the shipped set.

    Returns: a function from a prompt to a caption. It leaves out articles and "draw me a picture of", knows words that
        mean the same and skin tones said in other ways, and takes the words of a name in any order. It raises
        ValueError, which names the word and what may be meant, when a word occurs in no name.
    """
    emojis = shipped_emojis()
    captions = by_words(emojis)
    known = set(emojis.tokenizer.words)

    def rephrase(prompt: str) -> str:
        words = plain_words(prompt)
        if (number := emojis.by_name.get(" ".join(words))) is not None:
            return emojis.emojis[number].name
        if bag(words) in captions:
            return captions[bag(words)]
        if unknown := [word for word in words if word not in known]:
            raise ValueError(refusal(unknown[0], known, emojis))
        return " ".join(words)

    return rephrase


def plain_words(prompt: str) -> list[str]:
    """Split a prompt into words, without those that say nothing, and with skin tones as names have them."""
    text = " ".join(split_words(MARKS.sub(" ", prompt)))
    text = TONE.sub(lambda found: f"{found[1].replace(' ', '-')} skin tone", FILLER.sub("", text))
    return [SAME_WORDS.get(word, word) for word in text.split() if word not in ARTICLES]


def bag(words: list[str]) -> tuple[str, ...]:
    """Give the words in an order that does not depend on how they were said; "and" and "with" say nothing here."""
    return tuple(sorted(word for word in words if word not in ("with", "and", "of")))


def by_words(emojis: EmojiSet) -> dict[tuple[str, ...], str]:
    """List the captions by their words, where these are of one caption alone: two tones need their order."""
    found: dict[tuple[str, ...], set[str]] = {}
    for emoji in emojis.emojis:
        neutral = emojis.neutral(emoji)
        for caption in all_captions(emoji, neutral):
            said = emoji.name if "some" not in split_words(caption) else caption
            found.setdefault(bag(plain_words(caption)), set()).add(said)
        for other in emoji.also:
            found.setdefault(bag(plain_words(other)), set()).add(emoji.name)
        if emoji.gender == "person":
            found.setdefault(bag(["person", *plain_words(emoji.name)]), set()).add(emoji.name)
    return {words: next(iter(said)) for words, said in found.items() if len(said) == 1}


def refusal(word: str, known: set[str], emojis: EmojiSet) -> str:
    """Say that a word is unknown, and what may be meant: names with it as a keyword, or words that look like it."""
    named = [emoji.name for emoji in emojis.emojis if word in emoji.keywords and not emoji.tones][:3]
    near = named or difflib.get_close_matches(word, known, n=3)
    meant = " or ".join(f'"{name}"' for name in near)
    hint = f" Did you mean {meant}?" if near else ""
    return f'Unknown in the prompt: "{word:.40}", which occurs in the name of no emoji.{hint}'
