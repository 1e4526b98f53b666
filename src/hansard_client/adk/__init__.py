"""Hansard for agents of google-adk (the extra `adk`): its sessions and artifacts, kept in Hansard.

runner = Runner(
app_name="shop",
agent=agent,
session_service=HansardSessionService("127.0.0.1:50051", api_key=key),
artifact_service=HansardArtifactService("127.0.0.1:50051", api_key=key),
)
"""

from hansard_client.adk.artifacts import HansardArtifactService
from hansard_client.adk.sessions import HansardSessionService

__all__ = ["HansardArtifactService", "HansardSessionService"]
