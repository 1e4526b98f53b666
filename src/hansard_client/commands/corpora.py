"""`hansard corpora`: documents that many sessions search."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from hansard_client.commands.common import LIMIT_DEFAULT, Caller, Limit, Mistake, Yes, command
from hansard_client.commands.rendering import Column, moment
from hansard_client.commands.text import one_line, size

app = typer.Typer(help="Corpora: documents that many sessions search.", no_args_is_help=True)

CorpusKey = Annotated[str, typer.Argument(metavar="CORPUS", help="The corpus' key.")]

_SHOWN_CHARACTERS = 120
_ID_MAX_CHARACTERS = 128
_COLUMNS = (
    Column("KEY", lambda corpus: corpus.key, whole=True),
    Column("NAME", lambda corpus: corpus.name),
    Column("DOCUMENTS", lambda corpus: str(corpus.document_count), right=True),
    Column("PASSAGES", lambda corpus: str(corpus.passage_count), right=True),
    Column("CREATED", lambda corpus: moment(corpus.created_at)),
)
_DOCUMENT_COLUMNS = (
    Column("DOCUMENT", lambda document: document.document_id, whole=True),
    Column("SIZE", lambda document: size(document.size_bytes), right=True),
    Column("PASSAGES", lambda document: str(document.passage_count), right=True),
    Column("INDEXED", lambda document: moment(document.updated_at)),
)
_PASSAGE_COLUMNS = (
    Column("DOCUMENT", lambda passage: passage.document_id, whole=True),
    Column("PASSAGE", lambda passage: str(passage.passage), right=True),
    Column("SCORE", lambda passage: f"{passage.score:.2f}", right=True),
    Column("TEXT", lambda passage: one_line(passage.text, _SHOWN_CHARACTERS)),
)


def _list(caller: Caller, *, limit: Limit = LIMIT_DEFAULT) -> None:
    """List corpora, the newest first."""
    caller.show(_COLUMNS, caller.hansard.corpora.list(limit=limit or None), limit=limit)


def _create(
    caller: Caller,
    *,
    name: Annotated[str, typer.Option(help="What people call it.")],
    key: Annotated[str, typer.Option(help="Its key; left out, it is made from the name.")] = "",
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
) -> None:
    """Create an empty corpus."""
    made = caller.hansard.corpora.create(name=name, key=key, description=description)
    caller.show(_COLUMNS, [made])


def _delete(caller: Caller, corpus: CorpusKey, *, yes: Yes = False) -> None:
    """Delete a corpus with all its documents."""
    caller.confirm(f"The corpus {corpus} and all its documents will be deleted.", yes=yes)
    caller.hansard.corpora.delete(corpus)
    caller.say(f"Deleted: {corpus}")


def _index(
    caller: Caller,
    corpus: CorpusKey,
    paths: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Texts, in UTF-8.")],
    *,
    metadata: Annotated[str, typer.Option(help="A JSON object, for all of them.")] = "{}",
) -> None:
    """Index text files, each under its name. A document that has the name is replaced."""
    fields = _read_object(metadata)
    documents = (
        caller.hansard.corpora.index(
            corpus,
            _read_text(path),
            document_id=_id_of(path),
            metadata={"filename": path.name, **fields},
        )
        for path in paths
    )
    caller.show(_DOCUMENT_COLUMNS, documents)


def _documents(caller: Caller, corpus: CorpusKey, *, limit: Limit = LIMIT_DEFAULT) -> None:
    """List the documents of a corpus, the last indexed first."""
    documents = caller.hansard.corpora.list_documents(corpus, limit=limit or None)
    caller.show(_DOCUMENT_COLUMNS, documents, limit=limit)


def _remove(
    caller: Caller,
    corpus: CorpusKey,
    document: Annotated[str, typer.Argument(metavar="DOCUMENT", help="The document's id.")],
    *,
    yes: Yes = False,
) -> None:
    """Remove a document from a corpus."""
    caller.confirm(f"The document {document} will be removed from {corpus}.", yes=yes)
    caller.hansard.corpora.delete_document(corpus, document)
    caller.say(f"Removed: {document}")


def _search(
    caller: Caller,
    corpus: CorpusKey,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="Words, or a question.")],
    *,
    filter: Annotated[  # noqa: A002 - the option's name
        str, typer.Option(help="On metadata: doc.lang = 'en' AND doc.year >= 2024.")
    ] = "",
    limit: Annotated[int, typer.Option(help="How many passages at most.", min=1, max=100)] = 10,
) -> None:
    """Search a corpus; the best passages come first."""
    found = caller.hansard.corpora.search(query, [corpus], metadata_filter=filter, limit=limit)
    caller.show(_PASSAGE_COLUMNS, found)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise Mistake(f"{path}: is no text in UTF-8") from None


def _read_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Mistake(f"--metadata: {error}") from None
    if not isinstance(value, dict):
        raise Mistake("--metadata: must be a JSON object")
    return value


def _id_of(path: Path) -> str:
    return re.sub(r"[^0-9A-Za-z_.:@+-]", "_", path.name)[:_ID_MAX_CHARACTERS]


command(app, "list")(_list)
command(app, "create")(_create)
command(app, "delete")(_delete)
command(app, "index")(_index)
command(app, "documents")(_documents)
command(app, "remove")(_remove)
command(app, "search")(_search)
