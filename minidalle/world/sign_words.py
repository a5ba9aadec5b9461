"""What is said of the world of signs, and the way back: from a prompt to its facts, or to what is not understood.

Letters are words of the caption, so a sign may be asked to say what no picture of training says.
"""

import difflib
import random
import re
from collections.abc import Callable

from minidalle.tokenizer import Tokenizer, split_words
from minidalle.world.captions import GROUNDS, SAID
from minidalle.world.captions import WORDS as SPELLINGS
from minidalle.world.grammar import SYNONYMS, check_length
from minidalle.world.letters import GLYPHS, SLOTS
from minidalle.world.scenes import BACKGROUNDS, COLORS, SHAPES, SIZES
from minidalle.world.signs import Facts, Poster

COUNTS = ("a", "two", "three", "four")
PLURALS = {shape: f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in (*SHAPES, "shape")}
SAYS = "and a sign that says"
SHORTEST = 3  # letters of a word
SAMPLE = "three red circles on a black background and a sign that says d o g"

# What a prompt may say in place of the usual words
NUMBERS = {"one": 1, "single": 1, "couple": 2, "pair": 2} | {word: n for n, word in enumerate(COUNTS[1:], 2)}
NUMBERS |= {str(n): n for n in range(1, 1 + len(COUNTS))}
PLATES, WRITING = "(?:sign|plate|label|board)s?", "(?:words?|text|letters)"
SAYING = "(?:that |which )?(?:says?|saying|reads?|reading|labell?ed(?: with| as)?)"
UNDER = "(?:below|beneath|underneath|under)"
BELOW = f"(?:written )?{UNDER}(?: (?:it|them))?"
SIGN = re.compile(  # a plate that says it, writing, or objects that say it themselves
    rf"(?:(?:and|with|above|over|has|have|{UNDER} (?:it|them)) )*(?:(two|three|four|[2-9]) |an? |the )?"
    rf"(?:{PLATES} (?:{BELOW} )?(?:{SAYING}|with)(?: the)?(?: (?:three |four )?{WRITING})?|"
    rf"{WRITING}(?: {BELOW})?(?: {SAYING})?|{SAYING}(?: the (?:three |four )?{WRITING})?) "
    rf"((?:(?!an? \w\w)[a-z](?= |$) ?){{2,}}|\S+)(?: ?{BELOW}(?= |$))?"
)
NO_SIGN = re.compile(rf"(?:and |with )?(?:without|no) (?:an? |any |the )?(?:{PLATES}|{WRITING})(?= |$)")
COLORED = f"({'|'.join(BACKGROUNDS)}|gray)"
GROUND = re.compile(
    rf"(?:(?:on|with|in front of)(?: an?| the)? {COLORED}(?: background)?|"
    rf"(?:and )?(?:an? )?{COLORED} background)(?= |$)"
)
PLACES = frozenset("above below over under underneath beneath left right beside between behind on at in to".split())
FILLERS = frozenset(
    "please draw paint show make create me a an the picture image drawing of there is are with and".split()
)


def spellings(fact: str) -> list[str]:
    """List the single words that mean a fact."""
    return [word for word in (fact, *SPELLINGS.get(fact, ()), *SYNONYMS.get(fact, "").split()) if " " not in word]


NOUNS = {word: shape for shape in SHAPES for word in spellings(shape)} | dict.fromkeys(("shape", "object", "thing"))
SEVERAL = {f"{word}{'es' if word[-1] in 'sx' else 's'}": shape for word, shape in NOUNS.items()}
TINTS = {word: color for color in COLORS for word in spellings(color)}
EXTENTS = {word: size for size in SIZES for word in spellings(size)}
LOOKS = "|".join([*TINTS, *EXTENTS, *BACKGROUNDS, "gray"])
BEFORE_A_SIGN = re.compile(rf"\b({LOOKS}) (?:{PLATES}|{WRITING})\b")
AFTER_A_SIGN = re.compile(rf" ?(?:and |that |which )*(?:is |in |written in )+({LOOKS})\b")
RESERVED = FILLERS | PLACES | {"word", "words", "text", "letters", *BACKGROUNDS}
MEANINGS = (("count", NUMBERS), ("shape", NOUNS | SEVERAL), ("color", TINTS), ("size", EXTENTS))


def choose(poster: Poster, rng: random.Random, fullness: float = 0.0) -> Facts:
    """Choose which facts of a picture to tell: the count and a quoted word always, a label never.

    Args:
        poster: what there is to tell.
        rng: the source of randomness.
        fullness: 0 leaves out as much as captions.SAID states, 1 tells everything; between, a mixture of both.
    """
    facts = poster.facts

    def maybe(name: str) -> str | None:
        return getattr(facts, name) if rng.random() < SAID[name] + fullness * (1 - SAID[name]) else None

    return Facts(
        facts.count, maybe("shape"), maybe("color"), maybe("background"), facts.word if poster.quoted else None
    )


def write(facts: Facts) -> str:
    """Put facts into words; the count is taken for one where it is not said."""
    count, noun = facts.count or 1, facts.shape or "shape"
    words = [facts.color] if facts.color else []
    words.append(noun if count == 1 else PLURALS[noun])
    article = "an" if count == 1 and words[0][0] in "aeiou" else COUNTS[count - 1]
    ground = [GROUNDS[0].format(facts.background)] if facts.background else []
    return " ".join([article, *words, *ground, *([SAYS, *facts.word] if facts.word else [])])


def tokenizer() -> Tokenizer:
    """Make the tokenizer of all that captions say; the article and the letter a are one token."""
    longest = write(Facts(2, SHAPES[0], next(iter(COLORS)), next(iter(BACKGROUNDS)), "x" * SLOTS))
    fixed = split_words(f"{SAYS} {GROUNDS[0].format('')}")
    words = [*COUNTS, "an", *COLORS, *PLURALS, *PLURALS.values(), *fixed, *BACKGROUNDS, *GLYPHS]
    return Tokenizer(list(dict.fromkeys(words)), 1 + len(split_words(longest)))


TOKENIZER = tokenizer()


def parse(prompt: str) -> Facts:
    """Read the facts out of a prompt.

    Raises: ValueError: names the part that is not understood.
    """
    check_length(prompt)
    text = re.sub(r"[^\w ]", " ", prompt.lower().replace("_", " ").replace(",", " and "))  # a comma ends a word
    word, text = take_sign(prompt, " ".join(text.split()))
    ground = GROUND.search(text)
    text = GROUND.sub("", text, count=1)
    found: dict[str, list] = {"count": [], "shape": [], "color": [], "size": []}
    for token in text.split():
        name, known = next(((name, known) for name, known in MEANINGS if token in known), (None, {}))
        if name:
            found[name].append(known[token])
        elif token not in FILLERS:
            raise ValueError(refusal(prompt, token))
    if not found["count"] and set(text.split()) & SEVERAL.keys():
        raise ValueError(f'"{prompt:.80}" does not say how many; say two, three or four.')
    named = [part for part in re.split(r"\b(?:and|with)\b", text) if set(part.split()) & (NOUNS | SEVERAL).keys()]
    if len(named) > 1 and len(set(found["shape"]) - {None}) < 2:
        raise ValueError(f'"{prompt:.80}" names its objects twice; say how many there are, as in "{SAMPLE}".')
    return put_together(prompt, found, ground and (ground[1] or ground[2]).replace("gray", "grey"), word)


def take_sign(prompt: str, text: str) -> tuple[str | None, str]:
    """Take out of a text what it says of a sign: the sign's word, None where there is none, and the rest of the text.

    Raises: ValueError: when there is more to a sign than one word.
    """
    rest = NO_SIGN.sub("", text)
    if rest != text and re.search(rf"\b(?:{PLATES}|{WRITING}|{SAYING})\b", rest):
        raise ValueError(f'"{prompt:.80}" asks for a sign and for none: leave one of both out.')
    sign = SIGN.search(rest)
    if own := BEFORE_A_SIGN.search(rest) or (sign and AFTER_A_SIGN.match(rest, sign.end())):
        raise ValueError(
            f'"{prompt:.80}" asks for a sign that is {own[1]}; all signs look alike: leave "{own[1]}" out.'
        )
    if not sign:
        return None, rest
    if sign[2] in RESERVED and not re.search(rf"\b{SAYING}\b", sign[0]):
        raise ValueError(f'"{prompt:.80}" does not say what its sign says. Say it as in "{SAMPLE}".')
    number = sign[1] or "two" * (SIGN.search(rest, sign.end()) is not None)
    if number:
        raise ValueError(f'"{prompt:.80}" asks for {number} signs; a picture has one: say what that one says.')
    return checked_word(sign[2].replace(" ", "")), f"{rest[: sign.start()]} {rest[sign.end() :]}"


def checked_word(word: str) -> str:
    """Take a word that a sign can hold."""
    if not SHORTEST <= len(word) <= SLOTS or not set(word) <= set(GLYPHS):
        raise ValueError(f'A sign that says "{word:.40}" was asked for; it holds {SHORTEST} or {SLOTS} letters a to z.')
    return word


def put_together(prompt: str, found: dict[str, list], background: str | None, word: str | None) -> Facts:
    """Make facts of what was found in a prompt, or say what does not fit."""
    shapes = {shape for shape in found["shape"] if shape} or set(found["shape"])  # "a circle shape" is a circle
    if (kinds := len(shapes)) != 1:
        raise ValueError(f'"{prompt:.80}" names {kinds} kinds of objects; one was expected, as in "{SAMPLE}".')
    if twofold := [name for name, values in found.items() if name != "shape" and len(set(values)) > 1]:
        raise ValueError(f'"{prompt:.80}" gives two {twofold[0]}s; all objects of a picture are alike: name one.')
    count, color, size = (next(iter(found[name]), None) for name in ("count", "color", "size"))
    count = count or 1
    if size and size != (fits := "large" if count == 1 else "small"):
        raise ValueError(f'"{prompt:.80}" asks for {size} objects; {count} are always {fits}: leave the size out.')
    return Facts(count, *shapes, color, background, word)


def refusal(prompt: str, token: str) -> str:
    """Say which word was not understood, and what may be meant."""
    near = difflib.get_close_matches(token, [*NUMBERS, *NOUNS, *SEVERAL, *TINTS, *BACKGROUNDS], n=1, cutoff=0.75)
    hint = f'Did you mean "{near[0]}"?' if near else f'Understood is, for example, "{SAMPLE}".'
    if re.fullmatch(f"{PLATES}|{WRITING}", token):
        hint = f'Say what it says, in one word, as in "{SAMPLE}".'
    if token in PLACES:
        hint = "Objects of one kind stand anywhere, and a sign below them: leave the place out."
    if token in (*BACKGROUNDS, "gray"):
        hint = f'Only backgrounds are {token}: say "on a {token} background".'
    return f'"{token:.40}" is not understood in "{prompt:.80}". {hint}'


def sign_language(world: dict) -> Callable[[str], str]:
    """Give what brings prompts into the words of the world of signs, whatever the models say of theirs."""
    return lambda prompt: write(parse(prompt))


def matches(asked: Facts, shown: Facts) -> dict[str, bool]:
    """Tell for each fact that is asked for whether a picture shows it so."""
    return {
        name: getattr(shown, name) == value
        for name in ("count", "shape", "color", "background", "word")
        if (value := getattr(asked, name)) is not None
    }
