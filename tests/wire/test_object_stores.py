"""`serve --artifacts`: clouds over HTTP, and what an operator hears when they can't be used."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hansard.v1 import artifact_service_pb2
from hansard_server.artifacts.object_stores import BadLocation, CloudOptions, open_place
from tests.support.s3 import S3Endpoint
from tests.support.server import Running, open_channel, serve_process
from tests.support.talk import Talk

BAD_CONFIGURATION = 2
CANNOT_START = 3
OTHERS = (
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ALLOW_HTTP",
    "AWS_PROFILE",
)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave nothing in the environment that says where a cloud is."""
    for name in OTHERS:
        monkeypatch.delenv(name, raising=False)


def refused(tmp_path: Path, artifacts: str, *settings: str) -> tuple[int, str]:
    """Return exit code and last line of a server that does not start."""
    flags = [flag for setting in settings for flag in ("--set", setting)]
    paths = os.pathsep.join(path for path in sys.path if path)
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "hansard_server", "serve", "--insecure"),
            *("--listen", "127.0.0.1:0", "--http-listen", "off", "--data-dir", str(tmp_path)),
            *("--artifacts", artifacts, *flags),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stderr.strip().splitlines()[-1]


def test_bucket_that_is_not_there(s3: S3Endpoint, alone: None, tmp_path: Path) -> None:
    code, line = refused(
        tmp_path,
        "s3://nowhere/x",
        f"artifacts_endpoint={s3.url}",
        "artifacts_access_key_id=a",
        "artifacts_secret_access_key=hush",
    )
    assert code == CANNOT_START
    assert "artifacts: s3://nowhere/x: there is no such bucket" in line


def test_endpoint_that_does_not_answer(alone: None, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        code, line = refused(
            tmp_path,
            "s3://bucket",
            f"artifacts_endpoint={endpoint}",
            "artifacts_access_key_id=a",
            "artifacts_secret_access_key=hush",
        )
    assert code == CANNOT_START
    assert "artifacts: s3://bucket: " in line
    assert endpoint in line
    assert "hush" not in line


def test_url_that_is_none(alone: None, tmp_path: Path) -> None:
    code, line = refused(tmp_path, "gopher://x/y")
    assert code == BAD_CONFIGURATION
    assert "artifacts: can't be a URL of the kind gopher://" in line


@pytest.mark.parametrize(
    ("location", "options"),
    [
        ("gopher://x/y", {}),
        ("https://example.com/bucket", {}),
        ("s3://", {}),
        ("s3:///prefix", {}),
        ("s3://bucket/prefix?x=1", {}),
        ("s3://key:hush@bucket/prefix", {}),
        ("s3://bucket", {"endpoint": "localhost:9000"}),
        ("s3://bucket", {"access_key_id": "a"}),
        ("gs://bucket", {"region": "x"}),
        ("/a/folder", {"endpoint": "http://localhost:9000"}),
    ],
)
def test_what_can_not_be_used(alone: None, location: str, options: dict[str, str]) -> None:
    with pytest.raises(BadLocation) as caught:
        open_place(location, CloudOptions(**options))
    assert "hush" not in str(caught.value)


def test_other_clouds_are_opened(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they answer is not looked at here: there is no endpoint that speaks their language."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    for location in ("gs://bucket/prefix", "az://container/prefix"):
        assert open_place(location).root is None


async def test_endpoint_and_credentials_of_the_environment(
    s3: S3Endpoint, alone: None, tmp_path: Path
) -> None:
    bucket = s3.bucket()
    environment = {
        "AWS_ENDPOINT_URL": s3.url,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    arguments = ("--listen", "127.0.0.1:0", "--data-dir", str(tmp_path))
    with serve_process(
        *arguments, "--artifacts", bucket.location, environment=environment
    ) as served:
        async with open_channel(served.wait_for("serving")["address"]) as channel:
            server: Any = None
            talk = await Talk(Running(server, channel)).begin()
            part = artifact_service_pb2.UploadArtifactsRequest
            event = await talk.server.artifacts.UploadArtifacts(
                iter(
                    [
                        part(start=artifact_service_pb2.UploadStart(**talk.keys)),
                        part(header=artifact_service_pb2.UploadHeader(filename="a.txt")),
                        part(chunk=b"hello"),
                    ]
                )
            )
            assert event.artifact_upload.artifacts[0].size_bytes == 5
    (name,) = bucket.objects()
    assert name.startswith("some/prefix/default/")
