"""Which submissions are alike: they share wordings that are rare in the class."""

import io
import itertools
import keyword
import math
import tokenize
from collections import Counter, defaultdict

from minidalle.course.classroom.grade import Graded
from minidalle.course.classroom.repair import same

WINDOW = 6  # tokens that are compared together
RARE = 0.1  # share of the class (at least three students) above which a wording is common
MIN_SHARED = 12  # rare wordings, below which nothing is said
MIN_SHARE = 0.6  # of the smaller one's rare wordings
SHOWN = 30


def shingles(source: str) -> set[tuple]:
    """Give the runs of tokens in code; comments, layout and how variables are called do not count."""
    names: dict[str, str] = {}
    tokens = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                tokens.append(names.setdefault(token.string, f"n{len(names)}"))
            elif token.type in (tokenize.NAME, tokenize.OP, tokenize.NUMBER):
                tokens.append(token.string)
    except (tokenize.TokenError, SyntaxError, ValueError):
        tokens = source.split()
    return set(zip(*(tokens[i:] for i in range(WINDOW)), strict=False))


def pairs(results: list[Graded]) -> list[tuple[float, int, str, str, str]]:
    """Find pairs of students whose answers to one lesson share many rare wordings.

    Short answers to the same question are alike without anybody copying, so wordings that many have are left out.

    Returns: share of the smaller one's rare wordings, their number, two students and the lesson; the most alike first.
    """
    found = []
    for lesson in dict.fromkeys(each.lesson.name for each in results):
        found += pairs_of_lesson([each for each in results if each.lesson.name == lesson], lesson)
    return sorted(found, reverse=True)[:SHOWN]


def pairs_of_lesson(results: list[Graded], lesson: str) -> list[tuple[float, int, str, str, str]]:
    """Find the pairs in one lesson."""
    said = {each.submission.student: wordings(each) for each in results}
    counts = Counter(itertools.chain.from_iterable(said.values()))
    limit = max(3, math.ceil(RARE * len(said)))
    holders = defaultdict(list)
    rare = Counter()
    for student, words in said.items():
        for word in words:
            if counts[word] <= limit:
                holders[word].append(student)
                rare[student] += 1
    shared = Counter(pair for who in holders.values() for pair in itertools.combinations(sorted(who), 2))
    return [
        (n / min(rare[a], rare[b]), n, a, b, lesson)
        for (a, b), n in shared.items()
        if n >= MIN_SHARED and n >= MIN_SHARE * min(rare[a], rare[b])
    ]


def wordings(each: Graded) -> set[tuple]:
    """Collect what a notebook's answers say, without what was handed out."""
    answers = [(e, each.answers.sources.get(e.name)) for e in each.lesson.exercises]
    given = set().union(*(shingles(e.stub) for e, _ in answers), *(shingles(e.solution) for e, _ in answers))
    return set().union(*(shingles(s) for e, s in answers if s and not same(s, e.stub)), ()) - given
