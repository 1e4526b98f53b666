"""An S3 endpoint without a cloud: moto's server, a process of its own with libraries of its own."""

from __future__ import annotations

import itertools
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.support.venvs import S3_SERVER, python_with

CREDENTIALS = {"artifacts_access_key_id": "test", "artifacts_secret_access_key": "secret"}
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Bucket:
    """A bucket of the endpoint, with a prefix of its own."""

    endpoint: str
    name: str
    prefix: str = "some/prefix"

    @property
    def location(self) -> str:
        return f"s3://{self.name}/{self.prefix}"

    @property
    def settings(self) -> dict[str, str]:
        """The settings of a server that keeps its artifacts here."""
        return {
            "artifacts": self.location,
            "artifacts_endpoint": self.endpoint,
            "artifacts_region": "us-east-1",
            **CREDENTIALS,
        }

    def objects(self) -> list[str]:
        """Return the names of all objects."""
        return self._list("?list-type=2")

    def uploads(self) -> list[str]:
        """Return the names of multipart uploads that are neither completed nor aborted."""
        return self._list("?uploads")

    def _list(self, query: str) -> list[str]:
        answer = httpx.get(f"{self.endpoint}/{self.name}{query}").raise_for_status().text
        assert "<IsTruncated>true" not in answer
        names = re.findall("<Key>([^<]*)</Key>", answer)
        assert all(name.startswith(f"{self.prefix}/") for name in names), names
        return names


@dataclass(frozen=True)
class S3Endpoint:
    """A running endpoint; it takes any credentials."""

    url: str

    def bucket(self) -> Bucket:
        """Return a new bucket."""
        name = f"artifacts-{next(_numbers)}"
        httpx.put(f"{self.url}/{name}").raise_for_status()
        return Bucket(self.url, name)


@dataclass
class Kept:
    """Where a server under test keeps the bytes of its artifacts: a folder, or a bucket."""

    folder: Path
    bucket: Bucket | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def in_bucket(cls, folder: Path, bucket: Bucket) -> Kept:
        return cls(folder, bucket, dict(bucket.settings))

    def names(self) -> list[str]:
        """Return the names of all that is there: objects, and what is being written."""
        if self.bucket is not None:
            return self.bucket.objects() + self.bucket.uploads()
        return [str(path) for path in (self.folder / "artifacts").rglob("*") if path.is_file()]


@contextmanager
def running_s3() -> Iterator[S3Endpoint]:
    """Give an endpoint until the context ends; skips the test where it can't be installed."""
    program = python_with("s3", *S3_SERVER).with_name("moto_server")
    with subprocess.Popen(
        [program, "-H", "127.0.0.1", "-p", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                found = re.search(r"Running on (http://127\.0\.0\.1:\d+)", line)
                if found:
                    break
            else:
                raise AssertionError("the S3 endpoint did not start")
            # What it writes is taken, so that it never waits.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield S3Endpoint(found[1])
        finally:
            process.kill()
