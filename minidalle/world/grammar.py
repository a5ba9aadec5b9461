"""From words to facts: what a prompt asks for, however it is worded, or which part of it is not understood.

A prompt is cut into words, phrases become tokens of one meaning each, and the tokens are read from left to right. What
has no meaning here, and is no filler, is refused by name: a part of a prompt is never dropped.
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from minidalle.world.captions import OPPOSITES, WORDS, Description, SaidObject, write
from minidalle.world.scenes import BACKGROUNDS, COLORS, SHAPES, SIZES

KINDS = {"shape": SHAPES, "color": tuple(COLORS), "size": tuple(SIZES)}
MAX_LENGTH = 300  # characters of a prompt

# Words beside those of captions.WORDS that mean a fact
SYNONYMS = {
    "circle": "disk dot circular round",
    "triangle": "triangular",
    "diamond": "rhombus lozenge",
    "ring": "doughnut annulus",
    "small": "tiny mini smaller",
    "large": "huge giant larger",
    "cyan": "turquoise aqua",
}
# Longest phrases first; each is read as the words behind it. {ground} stands for the name of a background
IS = r"(?:(?:that |which )?(?:is|lies|sits|stands|appears) )?(?:just |right |directly |immediately )?"
PHRASES = (
    (r"i d", "i would"),
    (r"(there|it|here|that) s", r"\1 is"),
    (r"(?:together|along) with|as well as|plus(?= (?:a|an)(?!\S))", "and"),
    (r"(?:and )?(?:with )?nothing else", ""),
    (r"two (?:objects|shapes|things|items|figures)", ""),
    (r"(?:the |with a |a )?(?:background|backdrop|canvas)(?: (?:that |which )?is| should be| being| in| of)?"
     r"(?: a| plain| solid| colou?red)* {ground}", r"ground-\1"),
    (r"(?:up)?(?:on|against|with|over|in front of) (?:a |an |the )?(?:plain |solid )?{ground}"
     r"(?: colou?red)?(?: (?:background|backdrop|canvas|ground))?(?= |$)", r"ground-\1"),
    (r"(?:in (?:a |an |the )?)?{ground}(?: colou?red)? (?:background|backdrop|canvas)", r"ground-\1"),
    (r"(?:up)?on (?:a |an |the )?{color}(?= ,| and|$)", "background"),  # of a colour that no background has
    (IS + r"(?:on top of|above|over|atop|higher than)", "above"),
    (IS + r"(?:below|under|underneath|beneath|lower than)", "below"),
    (IS + r"(?:(?:to|on|at) the )?(left|right)(?: hand)?(?: side)? (?:of|from)"
     r"(?! the (?:picture|image|canvas|frame|scene))", r"\1-of"),
    (r"(above|below|left-of|right-of) (?:it|that|this one)", r"\1-it"),
    (r"(?:of|on|in) the (?:canvas|picture|image|frame|scene)", ""),
    (r"(?<!the )(?<!top )(?<!bottom )(?<!upper )(?<!lower )right(?= (?:in|at|on) the )", ""),
    (r"backdrop|canvas", "background"),
    (r"left hand", "left"),
    (r"right hand", "right"),
    (r"({place}) (?:half|corner|side|edge|part|area|region)", r"\1"),
    (r"(?:corner|side|edge) (?:at|on) the (top|upper|bottom|lower|left|right)", r"\1"),
)  # fmt: skip
PLACE_WORDS = {
    "top": "top upper uppermost",
    "bottom": "bottom lower lowermost",
    "left": "left leftmost",
    "right": "right rightmost",
    "center": "center centre middle mid central centered centred",
}
ARTICLES = frozenset("a an another one some".split())
NOUNS = frozenset("shape object thing figure form item something".split())
FILLERS = frozenset(
    "please draw paint show render make create generate give want would like need to see me us i us you can could "
    "the at in on of is are be it its that this which with has having there here and "
    "picture image drawing scene painting frame position spot place "
    "placed located positioned sitting sits lying lies standing stands appearing appears put set just simple single "
    "exact exactly precisely very only near towards toward close shows showing contains containing depicts depicting "
    "featuring both should plain "
    "color colour colored coloured size sized shaped".split()
)
ASIDE = frozenset("and , ;".split())
BETWEEN = frozenset("in on at of to near towards toward".split())  # no relation of two objects
RELATIONS = frozenset(relation.replace(" ", "-") for relation in OPPOSITES)
TO_IT = frozenset(f"{relation}-it" for relation in RELATIONS)  # "and above it a blue square"

_FACTS = {word: (kind, fact) for kind, facts in KINDS.items() for fact in facts
          for word in (fact, *WORDS.get(fact, ()), *SYNONYMS.get(fact, "").split()) if " " not in word}  # fmt: skip
_PLACES = {word: place for place, words in PLACE_WORDS.items() for word in words.split()}
_GROUNDS = {word: name for name in BACKGROUNDS for word in (name, *WORDS.get(name, ()))}
_KNOWN = {"background", *_FACTS, *_PLACES, *_GROUNDS, *ARTICLES, *NOUNS, *FILLERS, *RELATIONS, *TO_IT}
_NAMES = {
    "place": "|".join(_PLACES),
    "ground": f"({'|'.join(_GROUNDS)})",
    "color": f"(?:{'|'.join(word for word, (kind, _) in _FACTS.items() if kind == 'color')})",
}
_PATTERNS = [(re.compile(rf"(?<!\S){words.format(**_NAMES)}(?!\S)"), meaning) for words, meaning in PHRASES]


@dataclass
class _Item:
    """An object while it is read: its facts, its place, whether it has been named by a noun."""

    facts: dict = field(default_factory=dict)
    place: list = field(default_factory=list)
    named: bool = False


def parse(prompt: str) -> Description:
    """Read the facts out of a prompt.

    Raises: ValueError: names the part that is not understood, and gives a sentence near to the prompt that is.
    """
    tokens = tokens_of(prompt)
    unknown = [token for token in tokens if token not in _KNOWN and not token.startswith("ground-") and token != ","]
    if unknown:
        raise ValueError(refusal(prompt, tokens, unknown))
    items, relation, ground, turned = [_Item()], None, None, False
    for i, token in enumerate(tokens):
        item, rest = items[-1], tokens[i + 1 :]
        if token.startswith("ground-"):
            name = _GROUNDS[token.removeprefix("ground-")]
            if ground not in (None, name):
                raise ValueError(f'"{prompt}" gives two backgrounds, {ground} and {name}; name one.')
            ground = name
        elif token in RELATIONS or token in TO_IT:
            if relation:
                raise ValueError(f'"{prompt}" gives two relations; say where the first object stands to the second.')
            relation, begun = token.removesuffix("-it").replace("-", " "), bool(item.facts or item.named)
            turned = token in TO_IT or not begun  # the object that stands there is named last
            if begun and len(items) == 1:
                items.append(_Item())
        elif token in _FACTS:
            kind, fact = _FACTS[token]
            if rest[:1] == ["background"]:
                continue  # the next token says so
            if item.facts.get(kind, fact) != fact:
                first = item.facts[kind]
                raise ValueError(
                    f'"{prompt}" gives one object two {kind}s, {first} and {fact}; '
                    'say "and a" or a relation between two objects.'
                )
            item.facts[kind] = fact
            item.named |= kind == "shape"
        elif token in NOUNS:
            item.named = True
        elif token == "background":
            raise ValueError(
                f'"{prompt}" gives a background that is none of {", ".join(BACKGROUNDS)}; name one of those.'
            )
        elif token in _PLACES:
            item.place.append(_PLACES[token])
        elif token in _GROUNDS:
            raise ValueError(
                f'"{token}" is no color of an object in "{prompt}"; objects are {", ".join(COLORS)}. '
                f'For the background say "on a {_GROUNDS[token]} background".'
            )
        elif item.named and (token in ARTICLES or token in ASIDE) and begins_object(rest, token):
            if i and tokens[i - 1] in BETWEEN:
                raise ValueError(
                    f'"{tokens[i - 1]}" between two objects is not understood in "{prompt}"; '
                    f'say "and" or one of {", ".join(OPPOSITES)}.'
                )
            items.append(_Item())
    return describe_items(prompt, items[::-1] if turned else items, relation, ground)


def check_length(prompt: str) -> None:
    """Refuse a prompt that is too long to be one, before patterns are searched in it."""
    if len(prompt) > MAX_LENGTH:
        raise ValueError(f"The prompt has {len(prompt)} characters; at most {MAX_LENGTH} are read: say less.")


def tokens_of(prompt: str) -> list[str]:
    """Cut a prompt into words, and replace phrases by tokens of one meaning."""
    check_length(prompt)
    text = re.sub(r"[-_/]", " ", prompt.lower().replace("’", "'"))
    text = " ".join(re.sub(r"([,;])", r" , ", re.sub(r"[.!?:\"“”'()]", " ", text)).split())
    for pattern, meaning in _PATTERNS:
        text = pattern.sub(meaning, text)
    return text.split()


def begins_object(rest: list[str], token: str) -> bool:
    """Tell whether what follows an article, a comma or "and" names one more object."""
    if token == "and" and (not rest or rest[0] == "another"):
        return True  # which then lacks its name
    for later in rest:
        if later == "one" and token == "and":
            return True
        if later in ("and", ";") or later in RELATIONS or (later in ARTICLES and token in ARTICLES):
            return False
        if later in ("color", "colour", "size", "background"):
            return False
        if later in NOUNS or _FACTS.get(later, ("",))[0] == "shape":
            return True
    return False


def describe_items(prompt: str, items: list[_Item], relation: str | None, ground: str | None) -> Description:
    """Put together what was read, or say what does not fit."""
    if len(items) > 2:
        raise ValueError(f'"{prompt}" names {len(items)} objects; name one or two.')
    if any(not item.facts and not item.named for item in items):
        found = "one object where it announces two" if len(items) == 2 and any(i.facts for i in items) else "no object"
        raise ValueError(f'"{prompt}" names {found}; name each, such as "a red circle" or "a shape".')
    if relation and len(items) == 1:
        raise ValueError(f'"{prompt}" says "{relation}" of one object; name the other, such as "a blue square".')
    places = [place_of(prompt, item.place) for item in items]
    if len(items) == 2 and any(places):
        implied = {("left", "right"): "left of", ("right", "left"): "right of", ("top", "bottom"): "above",
                   ("bottom", "top"): "below"}.get(tuple(places))  # fmt: skip
        if relation is not None or implied is None:
            raise ValueError(f'"{prompt}" gives two objects one place; give them a relation, such as "above".')
        relation, places = implied, [None, None]
    objects = tuple(SaidObject(**item.facts) for item in items)
    return Description(objects, places[0], relation, ground)


def place_of(prompt: str, words: list[str]) -> str | None:
    """Name the place that words such as top and left give together."""
    found = list(dict.fromkeys(words))
    if {"top", "bottom"} <= set(found) or {"left", "right"} <= set(found):
        raise ValueError(f'"{prompt}" gives two places, {" and ".join(found)}; name one.')
    sides = [side for side in ("top", "bottom", "left", "right") if side in found]
    return " ".join(sides) or ("center" if found else None)


def refusal(prompt: str, tokens: list[str], unknown: list[str]) -> str:
    """Say what was not understood, and what would be."""
    names = ", ".join(f'"{word:.40}"' for word in dict.fromkeys(unknown))
    verb = "is" if len(set(unknown)) == 1 else "are"
    near = {
        word: difflib.get_close_matches(word, [w for w in _KNOWN if "-" not in w], n=1, cutoff=0.75) for word in unknown
    }
    mended = " ".join(near[t][0] if near.get(t) else t for t in tokens if t not in unknown or near[t])
    try:
        sentence = write(parse(mended.replace("ground-", "on a ")))
    except (ValueError, RecursionError):
        sentence = "a red circle above a blue square"
    return f'{names} {verb} not understood in "{prompt:.80}". Understood is, for example, "{sentence}".'


def scene_language(world: dict) -> Callable[[str], str]:
    """Give what brings prompts into the words that a system was trained on.

    Args:
        world: what its models say of the world; two_objects above 0 where they have met scenes of two objects.

    Returns: a function from a prompt to a caption, in the usual words and order of write.
    """

    def rephrase(prompt: str) -> str:
        description = parse(prompt)
        if len(description.objects) == 2 and not world.get("two_objects"):
            raise ValueError(f'"{prompt}" names two objects; these weights have learned to draw one: name one.')
        return write(description)

    return rephrase
