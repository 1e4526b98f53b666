"""Thesaurus: English words that may stand for each other, and irregular forms of words.

A line of `thesaurus.txt` is a group: each of its words may stand for each other one. A line of
`kinds.txt` is a kind and things of that kind, which may be what somebody asks for by the kind.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from importlib import resources

from hansard_server.domain.words import stem

_NONE: frozenset[str] = frozenset()


def alternatives(stemmed: str) -> frozenset[str]:
    """Return the stems of words that may stand for the word with this stem."""
    return _groups().get(stemmed, _NONE)


def kinds(stemmed: str) -> frozenset[str]:
    """Return the stems of things of the kind that the word with this stem names."""
    things = _things()
    named = (stemmed, *alternatives(stemmed))
    return frozenset().union(*(things.get(kind, _NONE) for kind in named))


@cache
def _groups() -> dict[str, frozenset[str]]:
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for line in _read("thesaurus.txt"):
        members = {stem(word) for word in line.split()}
        for member in members:
            groups[member] |= members
    return {word: frozenset(members - {word}) for word, members in groups.items()}


@cache
def _things() -> dict[str, frozenset[str]]:
    lines = (line.partition(":") for line in _read("kinds.txt"))
    return {stem(kind): frozenset(map(stem, things.split())) for kind, _, things in lines}


def _read(filename: str) -> list[str]:
    text = resources.files(__package__).joinpath(filename).read_text(encoding="utf-8")
    return text.splitlines()
