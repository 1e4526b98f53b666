"""A corpus of 100,000 passages is searched in at most 3 times the time that one of 1,000 takes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from functools import partial

import pytest
from sqlalchemy import text

from hansard_server.repository.sql.engine import make_engine
from hansard_server.repository.sql.store import SqlStore
from tests.benchmarks.measure import Report, compare
from tests.support.corpora import Library

SMALL, LARGE = 1_000, 100_000
PASSAGES_OF_DOCUMENT = 500
LIMIT = 3.0
# Words as texts have them: a few in most passages, many in few. By Zipf's law.
WORDS = [f"word{number}x" for number in range(20_000)]
WEIGHTS = [1 / (number + 2) for number in range(len(WORDS))]
QUERIES = {
    "rare words": {"query": "marker0 marker1 marker2"},
    "a frequent and a rare word": {"query": "word0x marker3"},
    "frequent words": {"query": "word0x word1x word2x word3x"},
    "one frequent word": {"query": "word0x"},
    "a question": {"query": "word5x word40x word300x word2000x word11000x word17000x"},
    "frequent words, one owner": {
        "query": "word0x word1x",
        "metadata_filter": "doc.owner = 'o1'",
    },
    "a question, of some years": {
        "query": "word0x word40x word300x",
        "metadata_filter": "doc.year >= 2015 AND doc.year < 2017",
    },
    "a question, of most years": {
        "query": "word0x word40x word300x",
        "metadata_filter": "doc.year < 2024",
    },
}


class Corpora:
    """Two corpora in one database, and a loop that searches them."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._store = self._loop.run_until_complete(SqlStore.open(url))
        self._library = Library(self._store)

    def fill(self, key: str, passages: int) -> None:
        """Make a corpus of so many passages, each of some 800 characters."""
        self._loop.run_until_complete(self._fill(key, passages))

    async def _fill(self, key: str, passages: int) -> None:
        await self._library.make(key)
        rnd = random.Random(passages)
        for number in range(passages // PASSAGES_OF_DOCUMENT):
            paragraphs = [
                " ".join(rnd.choices(WORDS, WEIGHTS, k=90)) for _ in range(PASSAGES_OF_DOCUMENT)
            ]
            # As many in both corpora.
            if number < SMALL // PASSAGES_OF_DOCUMENT:
                for marked in range(50):
                    paragraphs[marked] += f" marker{marked % 5}"
            document = await self._library.index(
                f"d{number}",
                "\n\n".join(paragraphs),
                key,
                owner=f"o{number}",
                year=2015 + number % 10,
            )
            assert document.passage_count == PASSAGES_OF_DOCUMENT

    def search(self, key: str, query: dict[str, str]) -> None:
        """Search once."""
        self._loop.run_until_complete(self._library.search(keys=(key,), **query))

    def close(self) -> None:
        """Give everything back."""
        self._loop.run_until_complete(self._store.close())
        self._loop.close()


@pytest.fixture(scope="module")
def corpora(store_url: str) -> Iterator[Corpora]:
    """Give a small and a large corpus."""
    made = Corpora(store_url)
    made.fill("small", SMALL)
    made.fill("large", LARGE)
    engine = make_engine(store_url)
    with engine.begin() as connection:
        connection.execute(text("ANALYZE"))
    engine.dispose()
    yield made
    made.close()


@pytest.mark.parametrize("kind", QUERIES)
def test_a_large_corpus_is_searched_as_a_small_one(
    corpora: Corpora, database: str, kind: str, report: Report
) -> None:
    searches = {key: partial(corpora.search, key, QUERIES[kind]) for key in ("small", "large")}
    table = compare(
        f"Search for {kind}, {SMALL:,} and {LARGE:,} passages ({database})",
        ("small", searches["small"]),
        {"large": searches["large"]},
    )
    report.add(table)
    table.check(LIMIT)
