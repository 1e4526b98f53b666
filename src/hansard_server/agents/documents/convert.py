"""Converting documents: a process with limits for each, a few at a time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import structlog

from hansard_server.agents.documents import worker
from hansard_server.domain.limits import MIB
from hansard_server.domain.values import dataclass

SUFFIXES = frozenset(worker.CONVERTERS)
"""What can be converted, by the end of a file's name."""
SUFFIX_OF_TYPE = {
    "application/pdf": ".pdf",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": ".pptx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx",
    "application/vnd.ms-excel": ".xls",
    "text/html": ".html",
    "application/epub+zip": ".epub",
    "text/csv": ".csv",
    "application/json": ".json",
    "application/xml": ".xml",
    "text/markdown": ".md",
    "text/plain": ".txt",
}
_READ_BYTES = 256 * 1024
_WORDS_BYTES = 300
_CRASHED = (-signal.SIGSEGV, -signal.SIGBUS)

_log = structlog.get_logger(__name__)


class Unconvertible(Exception):  # noqa: N818 - reads as what happened
    """The document could not be converted; says why, in words for a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionLimits:
    """What the conversion of one document may take.

    Attributes:
        source_bytes: the document.
        output_bytes: the Markdown.
        memory_bytes: address space of the process.
        processor_s: processor time of the process.
        time_s: time by the clock.
        at_once: conversions of this server at a time; others wait.
    """

    source_bytes: int = 64 * MIB
    output_bytes: int = 16 * MIB
    memory_bytes: int = 1536 * MIB
    processor_s: int = 30
    time_s: float = 90.0
    at_once: int = 2


class DocumentConverter:
    """Converts documents to Markdown."""

    def __init__(self, limits: ConversionLimits | None = None) -> None:
        """Hold every conversion to the limits."""
        self.limits = limits or ConversionLimits()
        self._places = asyncio.Semaphore(self.limits.at_once)

    @contextlib.asynccontextmanager
    async def convert(self, chunks: AsyncIterator[bytes], suffix: str) -> AsyncIterator[Path]:
        """Give the file with the Markdown; it is gone on exit. Raises Unconvertible."""
        async with self._places:
            folder = await asyncio.to_thread(
                tempfile.TemporaryDirectory, prefix="hansard-document-"
            )
            try:
                source = Path(folder.name, "source" + suffix)
                target = Path(folder.name, "target.md")
                await self._save(chunks, source)
                await self._run(source, target, suffix)
                yield target
            finally:
                await asyncio.to_thread(folder.cleanup)

    async def _save(self, chunks: AsyncIterator[bytes], source: Path) -> None:
        room = self.limits.source_bytes
        file = await asyncio.to_thread(source.open, "wb")
        try:
            async for chunk in chunks:
                room -= len(chunk)
                if room < 0:
                    raise Unconvertible(
                        f"the document has more than {self.limits.source_bytes:,} bytes"
                    )
                await asyncio.to_thread(file.write, chunk)
        finally:
            await asyncio.to_thread(file.close)

    async def _run(self, source: Path, target: Path, suffix: str) -> None:
        code = await self._run_once(source, target, suffix)
        if code in _CRASHED:
            # Seen with sound documents, about once in fifty: code in C that crashes as it starts.
            code = await self._run_once(source, target, suffix)
        if code != 0:
            raise Unconvertible(_why(code))

    async def _run_once(self, source: Path, target: Path, suffix: str) -> int:
        """Return the exit code."""
        limits = self.limits
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-c", _start(), str(source), str(target), suffix),
            f"{limits.memory_bytes},{limits.processor_s},{limits.output_bytes}",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            cwd=source.parent,
            # Nothing of the server's environment, which holds its secrets.
            env={"PATH": os.defpath, "HOME": str(source.parent), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(limits.time_s):
                words = await _read_words(process)
                code = await process.wait()
        except TimeoutError:
            raise Unconvertible(f"the document took longer than {limits.time_s:g} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if code != 0:
            _log.info("document not converted", code=code, words=words, suffix=suffix)
        return code


def _start() -> str:
    # With -I the folders that this process imports from are not the child's.
    return (
        f"import sys; sys.path[:] = {sys.path!r}; from {worker.__name__} import main; import os; "
        "os._exit(main(sys.argv[1:]))"
    )


async def _read_words(process: asyncio.subprocess.Process) -> str:
    """Return the beginning of what the process writes; all is read, so that it never waits."""
    assert process.stderr is not None  # noqa: S101 - asked for above
    words = b""
    while piece := await process.stderr.read(_READ_BYTES):
        words += piece[: _WORDS_BYTES - len(words)]
    return words.decode("utf-8", "replace")


def _why(code: int) -> str:
    if code == worker.NOT_INSTALLED:
        return "this server has no converter installed (the extra 'documents')"
    if code == worker.UNREADABLE:
        return "the document can't be read: it is damaged, protected, or of another type"
    return "the document takes more memory or time than a conversion may"
