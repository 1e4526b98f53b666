"""The tools that are built in."""

from __future__ import annotations

from collections.abc import Mapping

from hansard_server.agents.api import Tool
from hansard_server.agents.tools.artifact_create import ArtifactCreate
from hansard_server.agents.tools.artifact_grep import ArtifactGrep
from hansard_server.agents.tools.artifact_read import ArtifactRead
from hansard_server.agents.tools.client_tool import ClientTool
from hansard_server.agents.tools.corpora_search import CorporaSearch
from hansard_server.agents.tools.document_conversion import DocumentConversion
from hansard_server.agents.tools.document_index import DocumentIndex
from hansard_server.agents.tools.image_read import ImageRead
from hansard_server.agents.tools.sub_agent import SubAgent

# Documents that are indexed wait with those that are converted: so many at a time in all.
_conversion = DocumentConversion()
BUILT_IN_TOOLS: Mapping[str, Tool] = {
    tool.name: tool
    for tool in (
        ArtifactCreate(),
        ArtifactGrep(),
        ArtifactRead(),
        ClientTool(),
        CorporaSearch(),
        _conversion,
        DocumentIndex(_conversion),
        ImageRead(),
        SubAgent(),
    )
}
