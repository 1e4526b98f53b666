"""Files go up and come down whole, or not at all."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hansard_client import files
from tests.people.conftest import SECONDS, Hansard


def upload(hansard: Hansard, agent: str, session: str, *paths: Path) -> list[dict[str, Any]]:
    done = hansard.ok("artifacts", "upload", agent, session, *map(str, paths), "--json")
    artifacts: list[dict[str, Any]] = done.objects[0]["artifact_upload"]["artifacts"]
    return artifacts


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big [red].bin"
    path.write_bytes(os.urandom(3 * files.CHUNK_BYTES + 17))
    return path


def test_files_go_up_and_come_down(
    hansard: Hansard, agent: str, session: str, big: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    made = upload(hansard, agent, session, big, empty)
    assert [artifact["filename"] for artifact in made] == [big.name, "empty"]
    listed = hansard.ok("artifacts", "list", agent, session)
    assert all(artifact["artifact_id"] in listed.out for artifact in made)
    assert "big [red].bin" in listed.out
    for artifact, path in zip(made, (big, empty), strict=True):
        copy = tmp_path / "copy"
        done = hansard.ok(
            *("artifacts", "download", agent, session, artifact["artifact_id"]),
            *("-o", str(copy), "--force"),
        )
        assert copy.read_bytes() == path.read_bytes()
        assert hashlib.sha256(path.read_bytes()).hexdigest() in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == [big.name, "copy", "empty"]


def test_a_file_that_is_there_is_kept(
    hansard: Hansard, agent: str, session: str, big: Path, tmp_path: Path
) -> None:
    [artifact] = upload(hansard, agent, session, big)
    other = tmp_path / "other"
    other.write_text("mine")
    arguments = ("artifacts", "download", agent, session, artifact["artifact_id"])
    done = hansard(*arguments, "-o", str(other))
    assert done.code == 1
    assert "--force" in done.err
    assert other.read_text() == "mine"


def test_a_download_goes_to_stdout_and_into_a_folder(
    hansard: Hansard, agent: str, session: str, big: Path, tmp_path: Path
) -> None:
    [artifact] = upload(hansard, agent, session, big)
    arguments = ("artifacts", "download", agent, session, artifact["artifact_id"])
    process = hansard.start(*arguments, "-o", "-", stdout=subprocess.PIPE)
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert out == big.read_bytes()
    (tmp_path / "folder").mkdir()
    hansard.ok(*arguments, "-o", str(tmp_path / "folder"))
    assert (tmp_path / "folder" / big.name).read_bytes() == big.read_bytes()


def test_an_artifact_is_deleted(hansard: Hansard, agent: str, session: str, big: Path) -> None:
    [artifact] = upload(hansard, agent, session, big)
    arguments = (agent, session, artifact["artifact_id"])
    hansard.ok("artifacts", "get", *arguments)
    hansard.ok("artifacts", "delete", *arguments, "--yes")
    assert "ARTIFACT_NOT_FOUND" in hansard("artifacts", "get", *arguments).err
