"""The ADK's artifact service on Hansard: each version of a file is an artifact of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from google.adk.artifacts.base_artifact_service import (
    ArtifactVersion,
    BaseArtifactService,
    ensure_part,
)
from google.adk.errors.input_validation_error import InputValidationError
from google.genai import types
from google.protobuf.struct_pb2 import Struct
from typing_extensions import override

from hansard.v1 import artifact_pb2
from hansard_client.adk.places import (
    agent_key,
    describe,
    ensure_session,
    make_key,
    read_name,
    to_name,
)
from hansard_client.async_client import AsyncHansard, AsyncSession
from hansard_client.channels import DEFAULT_TARGET
from hansard_client.errors import AgentNotFound, ArtifactNotFound, SessionNotFound
from hansard_client.files import File

_USER_PREFIX = "user:"
_TEXT_TYPE = "text/plain"
_PART_TYPE = "application/json"


class HansardArtifactService(BaseArtifactService):
    """Keeps files of the ADK in Hansard, checked by their SHA-256.

    The files of a session of the ADK are in a session of Hansard of their own, beside that of its
    events, so that who saves a file disturbs nobody who appends; so are those of a user (`user:`).
    """

    def __init__(
        self,
        target: str | Sequence[str] = DEFAULT_TARGET,
        *,
        api_key: str | None = None,
        **options: Any,
    ) -> None:
        """Prepare to call the server at `target`; as HansardSessionService."""
        self._client = AsyncHansard(target, api_key=api_key, **options)

    async def close(self) -> None:
        """Give back connections."""
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @override
    async def save_artifact(
        self,
        *,
        app_name: str,
        user_id: str,
        filename: str,
        artifact: types.Part | dict[str, Any],
        session_id: str | None = None,
        custom_metadata: dict[str, Any] | None = None,
    ) -> int:
        """Save a version of a file and return its number, from 0. Raises InputValidationError."""
        shelf = self._shelf(app_name, user_id, filename, session_id)
        data, mime_type, kind = _to_bytes(ensure_part(artifact))
        metadata = describe(filename=filename) | {"adk_kind": kind}
        if custom_metadata:
            # As text: Hansard's own metadata knows no whole number beyond 2^53.
            metadata["adk_custom"] = json.dumps(custom_metadata, ensure_ascii=False)
        kept = Struct()
        kept.update(metadata)
        file = File(source=data, filename=_safe(filename), mime_type=mime_type, metadata=kept)
        try:
            event = await shelf.place.artifacts.upload(file)
        except (AgentNotFound, SessionNotFound):
            await shelf.create(self._client)
            event = await shelf.place.artifacts.upload(file)
        artifact_id = event.artifact_upload.artifacts[0].artifact_id
        versions = await shelf.versions(filename)
        return next(n for n, version in enumerate(versions) if version.artifact_id == artifact_id)

    @override
    async def load_artifact(
        self,
        *,
        app_name: str,
        user_id: str,
        filename: str,
        session_id: str | None = None,
        version: int | None = None,
    ) -> types.Part | None:
        """Return a version of a file, the newest unless one is named; None when there is none."""
        shelf = self._shelf(app_name, user_id, filename, session_id)
        kept = _pick(await shelf.versions(filename), version)
        if kept is None:
            return None
        try:
            return _to_part(await shelf.place.artifacts.read(kept.artifact_id), kept)
        except ArtifactNotFound:
            return None

    @override
    async def list_artifact_keys(
        self, *, app_name: str, user_id: str, session_id: str | None = None
    ) -> list[str]:
        """Return the names of the session's files and of the user's."""
        shelves = [_Shelf(self._client, app_name, user_id, None)]
        if session_id is not None:
            shelves.append(_Shelf(self._client, app_name, user_id, session_id))
        names = {_filename(kept) for shelf in shelves for kept in await shelf.all()}
        return sorted(names)

    @override
    async def delete_artifact(
        self, *, app_name: str, user_id: str, filename: str, session_id: str | None = None
    ) -> None:
        """Delete all versions of a file; nothing happens when there is none."""
        shelf = self._shelf(app_name, user_id, filename, session_id)
        for kept in await shelf.versions(filename):
            try:
                await shelf.place.artifacts.delete(kept.artifact_id)
            except ArtifactNotFound:
                continue

    @override
    async def list_versions(
        self, *, app_name: str, user_id: str, filename: str, session_id: str | None = None
    ) -> list[int]:
        """Return the numbers of all versions of a file."""
        shelf = self._shelf(app_name, user_id, filename, session_id)
        return list(range(len(await shelf.versions(filename))))

    @override
    async def list_artifact_versions(
        self, *, app_name: str, user_id: str, filename: str, session_id: str | None = None
    ) -> list[ArtifactVersion]:
        """Return what there is to know of all versions of a file."""
        shelf = self._shelf(app_name, user_id, filename, session_id)
        return [_to_version(n, kept) for n, kept in enumerate(await shelf.versions(filename))]

    @override
    async def get_artifact_version(
        self,
        *,
        app_name: str,
        user_id: str,
        filename: str,
        session_id: str | None = None,
        version: int | None = None,
    ) -> ArtifactVersion | None:
        """Return what there is to know of a version, the newest unless one is named."""
        shelf = self._shelf(app_name, user_id, filename, session_id)
        versions = await shelf.versions(filename)
        kept = _pick(versions, version)
        if kept is None:
            return None
        return _to_version(len(versions) - 1 if version is None else version, kept)

    def _shelf(self, app_name: str, user_id: str, filename: str, session_id: str | None) -> _Shelf:
        if filename.startswith(_USER_PREFIX):
            return _Shelf(self._client, app_name, user_id, None)
        if session_id is None:
            raise InputValidationError("Session ID must be provided for session-scoped artifacts.")
        return _Shelf(self._client, app_name, user_id, session_id)


class _Shelf:
    """The session of Hansard where files of one session, or one user, of the ADK are."""

    def __init__(
        self, client: AsyncHansard, app_name: str, user_id: str, session_id: str | None
    ) -> None:
        self._names = {"app": app_name, "user": user_id}
        if session_id is not None:
            self._names["session"] = session_id
        self._key = make_key("fil", user_id, *(() if session_id is None else (session_id,)))
        self.place: AsyncSession = client.session(agent_key(app_name), self._key)

    async def create(self, client: AsyncHansard) -> None:
        """Make it, unless it is there."""
        of = self._names.get("session", self._names["user"])
        await ensure_session(
            client,
            self._names["app"],
            self._key,
            name=to_name(f"Files of {of}"),
            metadata=describe(**self._names, kind="files"),
        )

    async def all(self) -> list[artifact_pb2.Artifact]:
        """Return every version of every file, the oldest first."""
        try:
            return [kept async for kept in self.place.artifacts.list(page_size=1_000)]
        except (AgentNotFound, SessionNotFound):
            return []

    async def versions(self, filename: str) -> list[artifact_pb2.Artifact]:
        """Return the versions of one file, the oldest first."""
        return [kept for kept in await self.all() if _filename(kept) == filename]


def _filename(kept: artifact_pb2.Artifact) -> str:
    return read_name(kept.metadata, "filename")


def _pick(
    versions: Sequence[artifact_pb2.Artifact], version: int | None
) -> artifact_pb2.Artifact | None:
    if version is None:
        return versions[-1] if versions else None
    return versions[version] if 0 <= version < len(versions) else None


def _to_bytes(part: types.Part) -> tuple[bytes, str, str]:
    """Return the bytes of a part, their type, and what kind of part it was."""
    if part.inline_data is not None:
        blob = part.inline_data
        return blob.data or b"", blob.mime_type or "application/octet-stream", "inline_data"
    if part.text is not None:
        return part.text.encode("utf-8", "surrogatepass"), _TEXT_TYPE, "text"
    if part.file_data is not None:
        return part.model_dump_json(exclude_none=True).encode(), _PART_TYPE, "part"
    raise InputValidationError("Not supported artifact type.")


def _to_part(data: bytes, kept: artifact_pb2.Artifact) -> types.Part:
    kind = str(kept.metadata["adk_kind"])
    if kind == "text":
        return types.Part(text=data.decode("utf-8", "surrogatepass"))
    if kind == "part":
        return types.Part.model_validate_json(data)
    return types.Part(inline_data=types.Blob(data=data, mime_type=kept.mime_type))


def _to_version(number: int, kept: artifact_pb2.Artifact) -> ArtifactVersion:
    metadata = kept.metadata
    custom = json.loads(str(metadata["adk_custom"])) if "adk_custom" in metadata else {}
    place = f"agents/{kept.agent_key}/sessions/{kept.session_key}/artifacts/{kept.artifact_id}"
    return ArtifactVersion(
        version=number,
        canonical_uri=f"hansard://{place}",
        custom_metadata=custom,
        create_time=kept.created_at.seconds + kept.created_at.nanos / 1e9,
        mime_type=None if metadata["adk_kind"] == "part" else kept.mime_type,
    )


def _safe(filename: str) -> str:
    """Return a name that is no path, for who looks at the files in Hansard."""
    plain = filename.replace("/", "_").replace("\\", "_")
    shown = to_name("".join(c if c.isprintable() else "_" for c in plain))
    return shown if shown.strip(". ") else "file"
