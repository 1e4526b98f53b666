"""Corpora in the store: what is found, what is not, and what is left of what was deleted."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from sqlalchemy import Connection, func, select, text

from hansard_server.corpora import corpora as use_cases
from hansard_server.corpora import search as searching
from hansard_server.domain.errors import CorpusNotFound, StoreUnavailable
from hansard_server.repository.api import Store, WriteTx
from hansard_server.repository.sql.store import SqlStore
from hansard_server.repository.sql.tables import corpora, documents, passages
from tests.support.corpora import Library

HOUR_US = 3_600_000_000


async def counts(store: SqlStore) -> list[int]:
    """Return how many rows there are: corpora, documents, passages, entries of the index."""

    def query(tx: object) -> list[int]:
        connection: Connection = tx.connection  # type: ignore[attr-defined]
        found = [
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (corpora, documents, passages)
        ]
        entries = connection.execute(text("SELECT count(*) FROM passage_index")).scalar_one()
        return [*found, entries]

    return await store.read(query)


async def purge(store: Store, now_us: int, max_rows: int = 500, keep_us: int = 0) -> int:
    """Purge in pieces until nothing is left; return how many pieces it took."""
    pieces = 0
    while await store.write(
        lambda tx: tx.purge_deleted(now_us, keep_rows_us=keep_us, max_rows=max_rows)
    ):
        pieces += 1
    return pieces


async def test_others_change_neither_answer_nor_score(store: SqlStore) -> None:
    mine, theirs = Library(store), Library(store, "other")
    for library in (mine, theirs):
        await library.make()
        await library.make("more")
    for number in range(5):
        await mine.index(f"d{number}", f"Walruses {'swim ' * number} in the cold sea.")
    before = [(f.stored.document_id, f.score) for f in await mine.search("cold walruses swim")]
    assert len(before) == 5
    for number in range(40):
        await theirs.index(f"d{number}", "Walruses swim, walruses swim.")
        await mine.index(f"x{number}", "Cold walruses swim.", "more")
    after = [(f.stored.document_id, f.score) for f in await mine.search("cold walruses swim")]
    assert after == before


async def test_both_stores_rank_alike(store: SqlStore) -> None:
    library = Library(store)
    await library.make()
    rnd = random.Random(7)
    words = [f"word{n}" for n in range(40)]
    texts = {f"d{n:02}": rnd.choices(words, k=rnd.randint(5, 60)) for n in range(60)}
    for document_id, text_words in texts.items():
        await library.index(document_id, " ".join(text_words))
    wanted = ("word1", "word7", "word39")
    scores: dict[str, float] = {}
    for document_id, text_words in texts.items():
        length = 1.2 * (0.25 + 0.75 * len(text_words) / 110)
        for word in wanted:
            count = text_words.count(word)
            having = sum(word in other for other in texts.values())
            weight = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
            part = weight * count * 2.2 / (count + length)
            scores[document_id] = scores.get(document_id, 0) + part
    best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:8]
    found = await library.search(" ".join(wanted), limit=8)
    assert [found_one.stored.document_id for found_one in found] == [name for name, _ in best]
    assert [found_one.score for found_one in found] == pytest.approx([score for _, score in best])


async def test_frequent_words_only_add_to_rare_ones(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "FREQUENT_FROM", 5)
    monkeypatch.setattr(searching, "_READ_MAX", 8)
    library = Library(store)
    await library.make()
    for number in range(30):
        await library.index(f"common{number:02}", "The sea is cold and deep and wide.")
    await library.index("both", "Deep in the sea lives a walrus.")
    await library.index("rare", "A walrus sleeps.")
    assert await library.ids("walrus deep", limit=2) == ["both", "rare"]
    assert len(await library.ids("cold deep wide")) == 5
    # What has all frequent words is found, wherever it stands.
    for number in range(10):
        await library.index(f"dune{number}", "Dunes and plains.")
    await library.index("all", "Cold sand. Deep mines. Wide plains. And dunes.")
    assert (await library.ids("cold dunes", limit=1)) == ["all"]


async def test_equality_is_found_in_any_number_of_documents(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "FREQUENT_FROM", 5)
    monkeypatch.setattr(searching, "EXAMINED_MAX", 10)
    library = Library(store)
    await library.make()
    for number in range(40):
        await library.index(
            f"d{number:02}", "Cold sea.", owner={"name": f"o{number}"}, even=number % 2 == 0
        )
    monkeypatch.setattr(searching, "DOCUMENTS_MAX", 3)
    assert await library.ids(
        "cold sea", metadata_filter="doc.owner.name > 'o38' AND doc.owner.name < 'o4'"
    ) == ["d39"]
    for wanted in (
        "doc.owner.name = 'o39'",
        "doc.owner.name IN ('o39', 'zz') AND doc.even = false",
    ):
        assert await library.ids("cold sea", metadata_filter=wanted) == ["d39"]
    assert (
        await library.ids("cold", metadata_filter="doc.owner.name = 'o39' AND doc.even = true")
        == []
    )


async def test_what_was_deleted_is_purged_in_pieces(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(use_cases, "PASSAGES_AT_ONCE", 3)
    library = Library(store, clock=lambda: 1_000)
    await library.make()
    await library.make("kept")
    long = "\n\n".join("word " * 180 for _ in range(20))
    await library.index("a", long)
    await library.index("a", "Replaced.")
    await library.index("b", long)
    await library.index("c", "Kept.", "kept")
    assert await counts(store) == [2, 4, 42, 42]
    assert await purge(store, 1_000, keep_us=10, max_rows=40) >= 4
    assert await counts(store) == [2, 4, 22, 22]
    assert await purge(store, 1_010, keep_us=10) == 1
    assert await counts(store) == [2, 3, 22, 22]
    await library.corpora.delete("tenant-1", "docs")
    assert await purge(store, 1_000, max_rows=40) >= 4
    assert await counts(store) == [1, 1, 1, 1]
    assert await library.ids("kept", ("kept",)) == ["c"]


async def test_documents_that_are_never_finished_are_not_seen_and_go(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(use_cases, "PASSAGES_AT_ONCE", 1)
    library = Library(store, clock=lambda: 1_000)
    await library.make()

    class Died(Exception):  # noqa: N818 - what happened
        """The process is gone."""

    def die(_: str) -> None:
        raise Died

    text_of_two = "\n\n".join("walrus " * 140 for _ in range(2))
    with monkeypatch.context() as patched:
        patched.setattr(use_cases, "hit", die)
        with pytest.raises(Died):
            await library.index("a", text_of_two)
    assert await library.ids("walrus") == []
    assert await counts(store) == [1, 1, 1, 1]
    assert await purge(store, 1_000) == 0
    await purge(store, 1_000 + HOUR_US)
    assert await counts(store) == [1, 0, 0, 0]
    assert (await library.index("a", text_of_two)).passage_count == 2
    assert await library.ids("walrus") == ["a", "a"]


@pytest.mark.parametrize("purged", [False, True])
async def test_corpus_that_goes_while_a_document_is_written(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch, *, purged: bool
) -> None:
    monkeypatch.setattr(use_cases, "PASSAGES_AT_ONCE", 1)
    library = Library(store, clock=lambda: 1_000)
    corpus = await library.make()
    written = store.write

    async def write(decide: Callable[[WriteTx], object]) -> object:
        done = await written(decide)
        monkeypatch.setattr(store, "write", written)

        def delete(tx: WriteTx) -> None:
            tx.delete_corpus(corpus.tenant, corpus.uid, 1_000)

        await written(delete)
        if purged:
            await purge(store, 1_000)
        return done

    monkeypatch.setattr(store, "write", write)
    with pytest.raises(StoreUnavailable if purged else CorpusNotFound):
        await library.index("a", "\n\n".join("walrus " * 140 for _ in range(3)))
    await purge(store, 1_000)
    assert await counts(store) == [0, 0, 0, 0]
