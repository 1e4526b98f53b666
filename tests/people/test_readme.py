"""The README: its tables are true, and its commands run, to the letter, from the top down."""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.people.conftest import PATHS, SECONDS
from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- runs until it is stopped -->\n)?```(sh|python)\n(.*?)```", re.DOTALL)
# The one thing that is changed: others may have the port.
ADDRESS = "127.0.0.1:50051"
HTTP_ADDRESS = "127.0.0.1:8080"
# By these words of its output one knows that a command serves.
READY = ("Ctrl-C stops.", '"serving"')


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and text, and whether it runs until it is stopped."""

    language: str
    text: str
    serves: bool

    @property
    def needs_grpcurl(self) -> bool:
        return "grpcurl" in self.text


def blocks() -> list[Block]:
    found = BLOCK.findall(README.read_text(encoding="utf-8"))
    return [Block(language, text, bool(serves)) for serves, language, text in found]


def test_the_tables_are_true() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "readme.py"))
    text = README.read_text(encoding="utf-8")
    assert tool["with_tables"](text) == text, "run tools/readme.py"


def test_every_block_is_run() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(blocks()) == text.count("```") / 2
    assert [block.serves for block in blocks()].count(True) == 2
    assert re.findall(r"\]\((?!https?:)([^)#]+)", text)


def test_every_link_leads_somewhere() -> None:
    pages = ("README.md", "CONTRIBUTING.md", "docs/ARCHITECTURE.md", "docs/GUARANTEES.md")
    for name in (*pages, "docs/CLIENT.md", "docs/HTTP.md"):
        page = ROOT / name
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{name}: {link}"


@dataclass(frozen=True)
class Reader:
    """Somebody who follows the README in a folder that looks like a clone with its set-up done."""

    folder: Path
    port: int
    http_port: int

    @contextmanager
    def serving(self, block: Block) -> Iterator[None]:
        """Run a block that serves, stopped at the end as Ctrl-C does."""
        with self._start(block, stderr=subprocess.STDOUT, start_new_session=True) as process:
            assert process.stdout is not None
            said = ""
            while not any(words in said for words in READY):
                line = process.stdout.readline().decode()
                assert line, said
                said += line
            try:
                yield
            finally:
                os.killpg(process.pid, signal.SIGINT)
                process.communicate(timeout=SECONDS)

    def run(self, block: Block) -> str:
        """Run a block, and return what it printed."""
        with self._start(block, stderr=subprocess.PIPE) as process:
            out, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, (block.text, out, err)
        return out.decode()

    def _start(
        self, block: Block, *, stderr: int, start_new_session: bool = False
    ) -> subprocess.Popen[bytes]:
        text = block.text.replace(ADDRESS, f"127.0.0.1:{self.port}")
        text = text.replace(HTTP_ADDRESS, f"127.0.0.1:{self.http_port}")
        python = block.language == "python"
        return subprocess.Popen(
            [sys.executable, "-c", text]
            if python
            else ["bash", "-e", "-o", "pipefail", "-c", text],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=start_new_session,
        )

    def _environment(self) -> dict[str, str]:
        address = f"127.0.0.1:{self.port}"
        venv = self.folder / ".venv"
        return {
            **os.environ,
            # Blocks after the first of a terminal find what it activated.
            "PATH": os.pathsep.join([str(venv / "bin"), os.environ["PATH"]]),
            "PYTHONPATH": PATHS,
            "PYTHONUNBUFFERED": "1",
            "HANSARD_LISTEN": address,
            "HANSARD_HTTP_LISTEN": f"127.0.0.1:{self.http_port}",
            "HANSARD_TARGET": address,
            # make must not install anything: the set-up is done.
            "MAKEFLAGS": "--old-file=.venv/.ready",
        }


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (tmp_path / ".venv" / ".ready").touch()
    (binaries / "activate").write_text(f'PATH="{binaries}:$PATH"\n')
    command = binaries / "hansard"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hansard_server "$@"\n')
    command.chmod(0o755)
    return Reader(tmp_path, free_port(), free_port())


def test_its_commands_run(reader: Reader) -> None:
    run, serve, *rest = (block for block in blocks() if not block.needs_grpcurl)
    assert run.text == "make run\n"
    with reader.serving(run):
        pass
    assert "hansard serve" in serve.text
    with reader.serving(serve):
        printed = [reader.run(block) for block in rest]
    assert any("> Unopened goods may be returned within 30 days" in out for out in printed)
    answers = ["> Opened software is exchanged for the same title only" in out for out in printed]
    # By the library, by the stubs and over HTTP.
    assert answers.count(True) == 3


def test_the_page_of_the_client_runs(reader: Reader) -> None:
    page = (ROOT / "docs" / "CLIENT.md").read_text(encoding="utf-8")
    found = BLOCK.findall(page)
    assert len(found) == page.count("```") / 2
    # One program: what a block defines the next ones use.
    program = "\n".join(text for _, _, text in found)
    _, serve, *_ = blocks()
    (reader.folder / "returns.md").write_text("Goods may be returned within 30 days.\n")
    with reader.serving(serve):
        out = reader.run(Block("python", program, serves=False))
    assert "within 30 days" in out
    assert "SESSION_NOT_FOUND" in out


def test_its_grpcurl_commands_run(grpcurl: None, reader: Reader) -> None:
    _, serve, agent, *rest = blocks()
    [calls] = [block for block in rest if block.needs_grpcurl]
    with reader.serving(serve):
        reader.run(agent)
        out = reader.run(calls)
    assert "hansard.v1.EventService" in out
    assert '"turn_end"' in out
    assert out.rstrip().endswith("}")
