"""Where things of the ADK are in Hansard: an agent for each app, sessions for what it keeps.

Keys are made from hashes, since apps, users and sessions of the ADK may be called anything; what
they are called stands in the metadata.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from google.protobuf.struct_pb2 import Struct

from hansard_client.async_client import AsyncHansard, AsyncSession
from hansard_client.errors import AgentAlreadyExists, AgentNotFound, SessionAlreadyExists

_HASH_CHARACTERS = 40
_NAME_MAX_CHARACTERS = 255
# No model of the server's answers: these agents run elsewhere.
MODEL = "elsewhere/google-adk"


def make_key(kind: str, *names: str) -> str:
    """Return the key of what these names mean; other names, or the same apart, have another."""
    # Lengths keep ("ab", "c") and ("a", "bc") apart; lone surrogates are names too.
    parts = [name.encode("utf-8", "surrogatepass") for name in names]
    digest = hashlib.sha256(b"".join(b"%d:%s" % (len(part), part) for part in parts))
    return f"{kind}_{digest.hexdigest()[:_HASH_CHARACTERS]}"


def agent_key(app_name: str) -> str:
    """Return the key of the app's agent."""
    return make_key("adk", app_name)


def session_key(user_id: str, session_id: str) -> str:
    """Return the key of a session of the ADK."""
    return make_key("ses", user_id, session_id)


def to_name(text: str) -> str:
    """Return a name that Hansard takes, for people: the text as far as possible."""
    shown = text.encode("utf-8", "replace").decode().replace("\0", " ")
    return shown[:_NAME_MAX_CHARACTERS] or "(no name)"


def to_text(name: str) -> str:
    """Return the name as metadata can hold it, so that `from_text` gives it back."""
    return name.encode("unicode_escape").decode() if not _plain(name) else name


def from_text(text: str, *, escaped: bool) -> str:
    """Return the name that `to_text` made the text of."""
    return text.encode().decode("unicode_escape") if escaped else text


def _plain(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in name


def describe(**names: str) -> dict[str, Any]:
    """Return metadata that say what a session of Hansard holds."""
    escaped = [key for key, name in names.items() if not _plain(name)]
    made: dict[str, Any] = {f"adk_{key}": to_text(name) for key, name in names.items()}
    if escaped:
        made["adk_escaped"] = ",".join(escaped)
    return made


def read_name(metadata: Struct, key: str) -> str:
    """Return one of the names that `describe` was given."""
    escaped = str(metadata["adk_escaped"]) if "adk_escaped" in metadata else ""
    return from_text(str(metadata[f"adk_{key}"]), escaped=key in escaped.split(","))


async def create_session(
    client: AsyncHansard,
    app_name: str,
    key: str,
    *,
    name: str,
    metadata: Mapping[str, Any],
) -> AsyncSession:
    """Create a session of Hansard, and the app's agent when it is the first.

    Raises SessionAlreadyExists.
    """
    agent = agent_key(app_name)
    try:
        made = await client.sessions.create(agent, key=key, name=name, metadata=dict(metadata))
    except AgentNotFound:
        await _create_agent(client, app_name)
        made = await client.sessions.create(agent, key=key, name=name, metadata=dict(metadata))
    return client.session(made)


async def ensure_session(
    client: AsyncHansard, app_name: str, key: str, *, name: str, metadata: Mapping[str, Any]
) -> None:
    """Create a session of Hansard unless it is there."""
    with suppress(SessionAlreadyExists):
        await create_session(client, app_name, key, name=name, metadata=metadata)


async def _create_agent(client: AsyncHansard, app_name: str) -> None:
    with suppress(AgentAlreadyExists):
        await client.agents.create(
            key=agent_key(app_name),
            name=to_name(app_name),
            description="An app of google-adk, which runs elsewhere.",
            model=MODEL,
            metadata=describe(app=app_name),
        )
