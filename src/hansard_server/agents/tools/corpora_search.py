"""`corpora_search`: passages of the agent's corpora that fit a question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hansard.v1 import corpus_pb2, corpus_service_pb2
from hansard_server.agents.api import Json, ToolContext
from hansard_server.agents.json_text import struct_to_json
from hansard_server.agents.metadata_filters import FILTER_FORMAT
from hansard_server.agents.overrides import resolve_filter

LIMIT_DEFAULT = 10
LIMIT_MAX = 100
_SCORE_DIGITS = 4


class CorporaSearch:
    """Answers {passages: [{corpus_key, document_id, passage, headings, text, score, metadata}]}.

    The best come first; `text` stands in the document word for word, `passage` is its place there.
    """

    name: Final = "corpora_search"
    description: Final = (
        "Searches this agent's document collections by words. Answers the passages that fit best, "
        "each with the id and the metadata of its document. Try other words when nothing fits."
    )
    input_schema: Final[Mapping[str, Json]] = {
        "type": "object",
        "properties": {
            "query": {
                "type": "string",
                "minLength": 1,
                "maxLength": 4_096,
                "description": "What to look for: words that the passages may have, or a question.",
            },
            "metadata_filter": {
                "type": "string",
                "format": FILTER_FORMAT,
                "description": "Only documents whose metadata meet this, such as: doc.year >= 2024 "
                "AND (doc.lang IN ('en', 'de') OR doc.kind = 'law').",
            },
            "limit": {
                "type": "integer",
                "minimum": 1,
                "maximum": LIMIT_MAX,
                "description": f"How many passages at most. Default: {LIMIT_DEFAULT}.",
            },
        },
        "required": ["query"],
        "additionalProperties": False,
    }

    async def run(self, arguments: Mapping[str, Json], context: ToolContext) -> Json:
        """Return the passages. Raises UnresolvedReference, InvalidRequest, CorpusNotFound."""
        search = context.configuration.corpora_search.query_configuration.search
        most = search.limit or LIMIT_MAX
        limit = int(arguments.get("limit", search.limit or LIMIT_DEFAULT))
        request = corpus_service_pb2.SearchCorporaRequest(
            query=arguments["query"],
            corpora=[
                corpus_pb2.CorpusSearch(
                    corpus_key=corpus.corpus_key,
                    metadata_filter=resolve_filter(
                        corpus.metadata_filter, context.agent, context.session
                    ),
                )
                for corpus in search.corpora
            ],
            metadata_filter=arguments.get("metadata_filter", ""),
            limit=min(limit, most),
        )
        found = await context.corpora.search(request)
        return {
            "passages": [
                {
                    "corpus_key": passage.corpus_key,
                    "document_id": passage.document_id,
                    "passage": passage.passage,
                    "headings": list(passage.headings),
                    "text": passage.text,
                    "score": round(passage.score, _SCORE_DIGITS),
                    "metadata": struct_to_json(passage.metadata),
                }
                for passage in found
            ]
        }
