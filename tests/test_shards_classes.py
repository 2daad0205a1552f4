"""How the classes of one side are found among those of another: by name where both have names, and never silently."""

from itertools import permutations

import pytest

from shards.index.classes import Classes, ClassMatch, match_classes

NAMES = ("ant", "bee", "cat")
NATURAL = tuple(map(str, range(11)))
SORTED = tuple(sorted(NATURAL))


def matched(names: tuple[str, ...], other: tuple[str, ...], num: int = 3, other_num: int = 3) -> ClassMatch:
    """Shards of these names against a teacher of others."""
    here = Classes("the shards", names, len(names) or num)
    return match_classes(here, Classes("the teacher", other, len(other) or other_num))


@pytest.mark.parametrize("other", list(permutations(NAMES)))
def test_every_order_of_the_same_names_is_found(other):
    """The answers in the order that the match gives have the names of the shards, in their order."""
    match = matched(NAMES, other)
    order = match.order or range(3)
    assert [other[place] for place in order] == list(NAMES)
    assert match.proven and not match.difference and bool(match.order) == bool(match.words) == (other != NAMES)


@pytest.mark.parametrize(
    ("names", "other", "order", "said"),
    [
        (SORTED, NATURAL, tuple(map(int, SORTED)), "another order: class 2 is '10' in the shards, '2' in"),
        (("cat", "ant"), (*NAMES, "dog"), (2, 0), "the 2 classes of the shards are among the 4 of the teacher"),
        ((), NAMES, (), "no class names in the shards: nothing shows"),
        (NAMES, (), (), "no class names in the teacher: nothing shows"),
        ((), (), (), "no class names in the shards and in the teacher"),
    ],
    ids=["natural order", "a part", "shards without names", "teacher without names", "nobody has names"],
)
def test_what_is_reordered_or_assumed_is_said(names, other, order, said):
    """One line; without names nothing is proven."""
    match = matched(names, other)
    assert match.order == order and said in match.words and not match.difference
    assert match.proven == bool(names and other)


@pytest.mark.parametrize(
    ("names", "other", "said"),
    [
        (("apple", "fig", "kiwi"), NAMES, "is 'apple' in the shards, 'ant' in the teacher; 0 of 3 names are in both"),
        (("ant", "bee", "cow"), NAMES, "class 2 is 'cow' in the shards, 'cat' in the teacher; 2 of 3 names"),
        ((*NAMES, "dog"), NAMES, "'dog', is none of the 3 classes of the teacher; 3 of 4 names"),
        (("ant", "bee", "Cat"), NAMES, "'Cat' in the shards, 'cat' in the teacher (lower and upper case)"),
        (("ant", "caf\u00e9"), ("ant", "cafe\u0301"), r"'caf\xe9' in the shards, 'cafe\u0301' in the teacher (two"),
        (("cafe\u0301",), ("ant", "caf\u00e9"), r"('caf\xe9' there (two Unicode forms"),
        (("a\nb", "c"), ("a b", "c"), r"'a\u000ab' in the shards"),
        (("ant", "bee", "cat"), ("bee", "ant", "ant"), "a name stands there twice"),
        ((), ("ant", "bee"), "3 classes in the shards, 2 in the teacher"),
        (NAMES, (), ""),
    ],
)
def test_other_classes_are_refused_by_the_first_that_differs(names, other, said):
    """Bytes are compared, and what looks alike is shown apart."""
    match = matched(names, other)
    assert said in match.difference and bool(said) == bool(match.difference)
    assert not match.order
