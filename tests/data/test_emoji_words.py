"""Prompts for the emoji world: what people type is brought into names, or refused with a hint."""

import hypothesis
import hypothesis.strategies as st
import pytest

from minidalle.data.emoji import TONES, all_captions, shipped_emojis
from minidalle.data.emoji_words import emoji_language
from minidalle.tokenizer import split_words

rephrase = emoji_language({"name": "emoji"})


@pytest.mark.parametrize(
    ("prompt", "caption"),
    [
        ("a woman astronaut, dark skin tone", "woman astronaut, dark skin tone"),
        ("A dark-skinned woman astronaut!", "woman astronaut, dark skin tone"),
        ("Draw me a picture of a female astronaut with medium-dark skin", "woman astronaut, medium-dark skin tone"),
        ("an astronaut woman with medium dark skin", "woman astronaut, medium-dark skin tone"),
        ("person astronaut", "astronaut"),
        ("please show me the pizza emoji", "pizza"),
        ("man with beard and light skin", "man, beard, light skin tone"),
        ("the flag of Norway", "flag, Bouvet Island"),
        ("Snowboarder: dark skin tone", "snowboarder"),
        ("some pilot, dark skin tone", "some pilot, dark skin tone"),
        (
            "kiss: woman, man, dark skin tone, light skin tone",
            "kiss, woman, man, dark skin tone, light skin tone",
        ),
        ("red dragon", "red dragon"),
    ],
)
def test_a_prompt_is_brought_into_a_caption(prompt, caption):
    assert rephrase(prompt) == caption


@pytest.mark.parametrize(
    ("prompt", "hint"),
    [
        ("a wizard", 'Unknown in the prompt: "wizard".*Did you mean "mage"'),
        ("a woman astronuat", 'Unknown in the prompt: "astronuat".*Did you mean "astronaut"'),
        ("a qqqqqqqq", 'Unknown in the prompt: "qqqqqqqq", which occurs in the name of no emoji.$'),
        ("a purple-skinned woman", "Unknown in the prompt"),
    ],
)
def test_what_is_not_understood_is_named_with_what_may_be_meant(prompt, hint):
    with pytest.raises(ValueError, match=hint):
        rephrase(prompt)


def test_every_caption_of_training_is_taken_as_the_emoji_it_is_of():
    emojis = shipped_emojis()
    for emoji in emojis.emojis:
        assert split_words(rephrase(emoji.name)) == split_words(emoji.name)
        for caption in all_captions(emoji, emojis.neutral(emoji)):
            emojis.tokenizer.encode([rephrase(caption)])


@hypothesis.given(
    st.sampled_from(["man", "woman"]), st.sampled_from(TONES), st.sampled_from(["pilot", "judge", "mage"])
)
def test_the_order_of_words_does_not_matter_where_there_is_one_tone(gender, tone, role):
    name = f"{gender} {role}, {tone} skin tone"
    for prompt in (
        f"{role} {gender} {tone} skin",
        f"{tone}-skinned {role}, {gender}",
        f"a {gender} {role} with {tone} skin tone",
    ):
        assert rephrase(prompt) == name
