"""Files on their way to a session and back, a chunk at a time, their SHA-256 checked."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import grpc

from hansard.v1 import artifact_pb2, artifact_service_pb2, event_pb2
from hansard_client.connection import Connection, new_request_id
from hansard_client.errors import Mistake, StreamCut

CHUNK_BYTES = 256 * 1024
_MODE = 0o666

Progress = Callable[[int], object]
"""Told of each number of bytes that went by."""


class Upload:
    """Files for one call: all become artifacts of the session together, or none does."""

    def __init__(self, connection: Connection, agent_key: str, session_key: str) -> None:
        self._connection = connection
        self._start = artifact_service_pb2.UploadStart(
            agent_key=agent_key, session_key=session_key, request_id=new_request_id()
        )
        self._failure: OSError | None = None

    def run(
        self, paths: Sequence[Path], *, description: str = "", progress: Progress = lambda _: None
    ) -> event_pb2.Event:
        """Return the event of the upload. Raises grpc.RpcError, OSError."""
        headers = [_header(path, description) for path in paths]
        try:
            return self._connection.artifacts.UploadArtifacts(self._parts(paths, headers, progress))
        except grpc.RpcError:
            if self._failure is not None:
                raise self._failure from None
            raise

    def _parts(
        self,
        paths: Sequence[Path],
        headers: Sequence[artifact_service_pb2.UploadHeader],
        progress: Progress,
    ) -> Iterator[artifact_service_pb2.UploadArtifactsRequest]:
        yield artifact_service_pb2.UploadArtifactsRequest(start=self._start)
        for path, header in zip(paths, headers, strict=True):
            yield artifact_service_pb2.UploadArtifactsRequest(header=header)
            try:
                for chunk in _chunks(path):
                    yield artifact_service_pb2.UploadArtifactsRequest(chunk=chunk)
                    progress(len(chunk))
            except OSError as error:
                # The file ends too early for its header, so the server stores nothing.
                self._failure = error
                return


def download(
    connection: Connection,
    request: artifact_service_pb2.DownloadArtifactRequest,
    write: Callable[[bytes], object],
    *,
    progress: Progress = lambda _: None,
) -> None:
    """Write all bytes of an artifact; a broken stream is taken up where it broke.

    Changes the request. Raises grpc.RpcError, OSError, Mistake (when the bytes are not those that
    were uploaded).
    """
    patience = connection.patience()
    digest = hashlib.sha256()
    while True:
        stream = connection.artifacts.DownloadArtifact(request)
        artifact = artifact_pb2.Artifact()
        try:
            for answer in stream:
                patience.progress()
                if answer.WhichOneof("part") == "artifact":
                    artifact = answer.artifact
                    continue
                digest.update(answer.chunk)
                write(answer.chunk)
                request.offset += len(answer.chunk)
                progress(len(answer.chunk))
            failure: grpc.RpcError | StreamCut = StreamCut()
        except grpc.RpcError as error:
            failure = error
        else:
            if artifact.checksum_sha256 and request.offset == artifact.size_bytes:
                break
        finally:
            stream.cancel()
        patience.wait(failure)
    if digest.hexdigest() != artifact.checksum_sha256:
        raise Mistake(
            f"{artifact.artifact_id}: what came has the SHA-256 {digest.hexdigest()}, not "
            f"{artifact.checksum_sha256}"
        )


def save(path: Path, fill: Callable[[BinaryIO], None], *, replace: bool) -> None:
    """Make a file that `fill` writes; it has its name only when it is whole.

    Raises OSError, and what `fill` raises; then nothing is left.
    """
    number, name = tempfile.mkstemp(dir=path.parent, prefix=".hansard-", suffix=".part")
    try:
        with os.fdopen(number, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(number)
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(_MODE & ~mask)
        if replace:
            Path(name).replace(path)
        else:
            _name_new(Path(name), path)
    finally:
        with suppress(FileNotFoundError):
            Path(name).unlink()


def _name_new(file: Path, path: Path) -> None:
    try:
        path.hardlink_to(file)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links; between look and rename somebody may be quicker.
        if path.exists():
            raise FileExistsError(17, "File exists", str(path)) from None
        file.replace(path)


def _header(path: Path, description: str) -> artifact_service_pb2.UploadHeader:
    digest = hashlib.sha256()
    size = 0
    for chunk in _chunks(path):
        digest.update(chunk)
        size += len(chunk)
    return artifact_service_pb2.UploadHeader(
        filename=path.name.encode("utf-8", "replace").decode(),
        description=description,
        size_bytes=size,
        checksum_sha256=digest.hexdigest(),
    )


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
