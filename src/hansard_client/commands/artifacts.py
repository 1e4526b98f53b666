"""`hansard artifacts`: the files of a session."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar

from hansard.v1 import artifact_pb2
from hansard_client.commands.common import (
    LIMIT_DEFAULT,
    AgentKey,
    Caller,
    Limit,
    Mistake,
    SessionKey,
    Yes,
    command,
)
from hansard_client.commands.rendering import Column, moment, print_json
from hansard_client.commands.text import one_line, size
from hansard_client.files import File
from hansard_client.operations.artifacts import Progress

app = typer.Typer(help="Artifacts: the files of a session.", no_args_is_help=True)

ArtifactId = Annotated[str, typer.Argument(metavar="ARTIFACT", help="The artifact's id, art_….")]

_COLUMNS = (
    Column("ARTIFACT", lambda artifact: artifact.artifact_id, whole=True),
    Column("FILE", lambda artifact: artifact.filename),
    Column("TYPE", lambda artifact: artifact.mime_type),
    Column("SIZE", lambda artifact: size(artifact.size_bytes), right=True),
)
_LIST_COLUMNS = (
    *_COLUMNS,
    Column("CREATED", lambda artifact: moment(artifact.created_at)),
    Column("SHA-256", lambda artifact: artifact.checksum_sha256[:12] + "…"),
)


def _upload(
    caller: Caller,
    agent: AgentKey,
    session: SessionKey,
    paths: Annotated[list[Path], typer.Argument(metavar="FILE...", help="The files.")],
    *,
    description: Annotated[str, typer.Option(help="What they are.")] = "",
) -> None:
    """Upload files: all of them become artifacts of the session, or none does."""
    files = [File(source=path, description=description) for path in paths]
    total = sum(path.stat().st_size for path in paths)
    with _progress(caller, "uploading", total) as advance:
        event = caller.hansard.session(agent, session).artifacts.upload(*files, progress=advance)
    if caller.as_json:
        print_json(caller.out, event)
    else:
        caller.show(_COLUMNS, event.artifact_upload.artifacts)


def _list(
    caller: Caller, agent: AgentKey, session: SessionKey, *, limit: Limit = LIMIT_DEFAULT
) -> None:
    """List the artifacts of a session, the oldest first."""
    artifacts = caller.hansard.session(agent, session).artifacts.list(limit=limit or None)
    caller.show(_LIST_COLUMNS, artifacts, limit=limit)


def _get(caller: Caller, agent: AgentKey, session: SessionKey, artifact: ArtifactId) -> None:
    """Show an artifact, without its bytes."""
    caller.show_one(caller.hansard.session(agent, session).artifacts.get(artifact))


def _download(
    caller: Caller,
    agent: AgentKey,
    session: SessionKey,
    artifact: ArtifactId,
    *,
    output: Annotated[
        str,
        typer.Option("--output", "-o", help="Where to; -: stdout. Default: its own name, here."),
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Download an artifact. The file has its name only when it is whole and its SHA-256 right."""
    artifacts = caller.hansard.session(agent, session).artifacts
    found = artifacts.get(artifact)
    with _progress(caller, "downloading", found.size_bytes) as advance:
        if output == "-":
            if sys.stdout.isatty():
                raise Mistake("a file's bytes are not for a terminal; name a file, or redirect")
            for chunk in artifacts.download(artifact):
                sys.stdout.buffer.write(chunk)
                advance(len(chunk))
            sys.stdout.buffer.flush()
            return
        path = Path(output or _own_name(found))
        if path.is_dir():
            path /= _own_name(found)
        if path.exists() and not force:
            raise Mistake(f"{path} is there already; --force replaces it")
        artifacts.save(artifact, path, replace=force, progress=advance)
    caller.say(f"{path}: {size(found.size_bytes)}, SHA-256 {found.checksum_sha256}")


def _delete(
    caller: Caller,
    agent: AgentKey,
    session: SessionKey,
    artifact: ArtifactId,
    *,
    yes: Yes = False,
) -> None:
    """Delete an artifact; the events that mention it stay."""
    caller.confirm(f"The artifact {artifact} will be deleted.", yes=yes)
    caller.hansard.session(agent, session).artifacts.delete(artifact)
    caller.say(f"Deleted: {artifact}")


def _own_name(artifact: artifact_pb2.Artifact) -> str:
    """Return a name for the file in this folder, whatever the server calls it."""
    name = one_line(artifact.filename).replace("/", "_").replace("\\", "_").lstrip(".")
    return name or artifact.artifact_id.replace("/", "_").lstrip(".") or "artifact"


@contextmanager
def _progress(caller: Caller, what: str, total: int) -> Iterator[Progress]:
    """Show a bar where somebody looks at it."""
    if not caller.err.is_terminal:
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=caller.err, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


command(app, "upload")(_upload)
command(app, "list")(_list)
command(app, "get")(_get)
command(app, "download")(_download)
command(app, "delete")(_delete)
