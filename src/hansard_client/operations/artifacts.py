"""Artifacts: the files of a session, a chunk at a time, their SHA-256 checked."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path

from hansard.v1 import artifact_service_pb2 as wire
from hansard.v1.artifact_pb2 import Artifact
from hansard.v1.event_pb2 import Event
from hansard_client import rpcs
from hansard_client.errors import (
    ArtifactNotFound,
    ChecksumMismatch,
    HansardError,
    StreamCut,
)
from hansard_client.files import PartFile, Source, Uploadable
from hansard_client.link import Patience
from hansard_client.operations.values import Place, new_request_id, to_order

Progress = Callable[[int], object]
"""Told of each number of bytes that went by."""


async def upload(
    place: Place,
    *files: Uploadable,
    request_id: str | None = None,
    progress: Progress | None = None,
) -> Event:
    """Upload files, all of which become artifacts together or none does, and return their event.

    `event.artifact_upload.artifacts` has the ids, in order. The upload is repeated when it breaks,
    under its `request_id`, if all files can be read again; `progress` then starts anew with a
    negative number. Raises ChecksumMismatch, QuotaExceeded, PayloadTooLarge and others; OSError
    when a file can't be read; ValueError for one without a name.
    """
    link = place.link
    sources = [Source(file) for file in files]
    headers = [await link.transport.run(source.header) for source in sources]
    start = wire.UploadStart(**place.incarnation, request_id=request_id or new_request_id())
    patience = Patience(link, repeatable=all(source.again for source in sources))
    tell = progress or (lambda _: None)
    while True:
        attempt = _Attempt(start, sources, headers, tell)
        try:
            event = await link.transport.upload(rpcs.UPLOAD_ARTIFACTS, attempt.parts())
        except HansardError as error:
            await patience.wait(error)
            tell(-attempt.sent_bytes)
        else:
            patience.hear()
            return event


async def get(place: Place, artifact_id: str) -> Artifact:
    """Return an artifact, without its bytes. Raises ArtifactNotFound, SessionNotFound."""
    request = wire.GetArtifactRequest(**place.keys, artifact_id=artifact_id)
    return await place.link.call(rpcs.GET_ARTIFACT, request)


def list_(
    place: Place,
    *,
    newest_first: bool | None = None,
    limit: int | None = None,
    page_size: int = 0,
) -> AsyncGenerator[Artifact, None]:
    """Yield the artifacts, the oldest first unless said otherwise, fetched page by page.

    `limit`: at most so many; None: all. `page_size`: how many are fetched at a time; 0: as many as
    the server likes.
    """
    request = wire.ListArtifactsRequest(
        **place.keys, order=to_order(newest_first=newest_first), page_size=page_size
    )
    return place.link.pages(rpcs.LIST_ARTIFACTS, request, lambda page: page.artifacts, limit)


async def download(
    place: Place, artifact_id: str, *, offset: int = 0, length: int | None = None
) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of an artifact, chunk by chunk; a broken stream goes on where it broke.

    `offset`, `length`: only a part of them. After the last byte of a whole artifact its SHA-256 is
    compared: ChecksumMismatch when it is another. Raises ArtifactNotFound, SessionNotFound, and
    InvalidRequest for an offset past the end.
    """
    link, patience, digest = place.link, Patience(place.link), hashlib.sha256()
    given = 0
    while True:
        request = wire.DownloadArtifactRequest(
            **place.keys, artifact_id=artifact_id, offset=offset + given
        )
        if length is not None:
            request.length = length - given
        reading = link.transport.stream(rpcs.DOWNLOAD_ARTIFACT, request)
        artifact = Artifact()
        try:
            while (answer := await reading.next()) is not None:
                patience.hear()
                if answer.HasField("artifact"):
                    artifact = answer.artifact
                    continue
                patience.progress()
                given += len(answer.chunk)
                digest.update(answer.chunk)
                yield answer.chunk
            wanted = max(artifact.size_bytes - offset, 0)
            if length is not None:
                wanted = min(wanted, length)
            if artifact.artifact_id and given >= wanted:
                break
            failure: HansardError = StreamCut("the stream ended before the last byte")
        except HansardError as error:
            failure = error
        finally:
            reading.cancel()
        await patience.wait(failure)
    whole = not offset and given == artifact.size_bytes
    if whole and digest.hexdigest() != artifact.checksum_sha256:
        raise ChecksumMismatch(
            f"{artifact_id}: what came has the SHA-256 {digest.hexdigest()}, not "
            f"{artifact.checksum_sha256}"
        )


async def read(place: Place, artifact_id: str) -> bytes:
    """Return all bytes of an artifact. Raises as `download`, which is for large ones."""
    chunks = bytearray()
    async with aclosing(download(place, artifact_id)) as stream:
        async for chunk in stream:
            chunks += chunk
    return bytes(chunks)


async def save(
    place: Place,
    artifact_id: str,
    path: str | Path,
    *,
    replace: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write an artifact to a file, which has its name only when it is whole and its SHA-256 right.

    Raises as `download`; OSError, FileExistsError among them unless `replace`.
    """
    run = place.link.transport.run
    target = Path(path)
    if not replace and await run(target.exists):
        raise FileExistsError(17, "File exists", str(target))
    part = await run(partial(PartFile, target, replace=replace))
    try:
        async with aclosing(download(place, artifact_id)) as stream:
            async for chunk in stream:
                await run(partial(part.write, chunk))
                if progress:
                    progress(len(chunk))
        await run(part.finish)
    finally:
        await run(part.discard)


async def delete(place: Place, artifact_id: str) -> None:
    """Delete an artifact; the events that mention it stay. Raises ArtifactNotFound."""
    request = wire.DeleteArtifactRequest(**place.keys, artifact_id=artifact_id)
    try:
        # Ids of artifacts are never used again, so it can't meet another one.
        await place.link.call(rpcs.DELETE_ARTIFACT, request, repeatable=True)
    except ArtifactNotFound as error:
        if not error.repeated:
            raise


class _Attempt:
    """One attempt to send files."""

    def __init__(
        self,
        start: wire.UploadStart,
        sources: Sequence[Source],
        headers: Sequence[wire.UploadHeader],
        progress: Progress,
    ) -> None:
        self.sent_bytes = 0
        self._start = start
        self._files = list(zip(sources, headers, strict=True))
        self._progress = progress

    def parts(self) -> Iterator[wire.UploadArtifactsRequest]:
        """Yield the messages of the call. Raises OSError."""
        yield wire.UploadArtifactsRequest(start=self._start)
        for source, header in self._files:
            yield wire.UploadArtifactsRequest(header=header)
            for chunk in source.chunks():
                yield wire.UploadArtifactsRequest(chunk=chunk)
                self.sent_bytes += len(chunk)
                self._progress(len(chunk))
