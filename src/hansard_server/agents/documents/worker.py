"""The process that reads one document: `python -I -m …worker SOURCE TARGET SUFFIX LIMITS`.

It limits itself before it looks at a byte of the document. Exit codes: 0 the Markdown stands in
TARGET; 3 the document can't be read; 4 the library is not installed; 5 there was not memory
enough; anything else: it was stopped.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

UNREADABLE = 3
NOT_INSTALLED = 4
EXHAUSTED = 5
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
CONVERTERS = {
    ".pdf": "PdfConverter",
    ".docx": "DocxConverter",
    ".pptx": "PptxConverter",
    ".xlsx": "XlsxConverter",
    ".xls": "XlsConverter",
    ".html": "HtmlConverter",
    ".htm": "HtmlConverter",
    ".epub": "EpubConverter",
    ".ipynb": "IpynbConverter",
    ".msg": "OutlookMsgConverter",
    ".csv": "CsvConverter",
    ".rss": "RssConverter",
    ".json": "PlainTextConverter",
    ".xml": "PlainTextConverter",
    ".md": "PlainTextConverter",
    ".txt": "PlainTextConverter",
}
"""By the end of a file's name, the library's converter."""
_OPEN_FILES = 64
_WORDS_MAX_CHARACTERS = 300


def main(arguments: list[str]) -> int:
    """Convert the document; return the exit code."""
    source, target, suffix, limits = arguments
    memory_bytes, processor_s, output_bytes = map(int, limits.split(","))
    _leave_the_network()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (output_bytes, output_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (processor_s, processor_s))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    try:
        from markitdown import StreamInfo, converters  # noqa: PLC0415 - under the limits
    except ImportError:
        return NOT_INSTALLED
    try:
        # Only the one for this kind: the library would go on to read a broken PDF as text.
        converter = getattr(converters, CONVERTERS[suffix])()
        with Path(source).open("rb") as document:
            converted = converter.convert(document, StreamInfo(extension=suffix))
        markdown = converted.markdown.encode("utf-8", "replace")
    except MemoryError:
        return EXHAUSTED
    except Exception as error:  # noqa: BLE001 - a stranger's file may do anything to the library
        sys.stderr.write(f"{type(error).__name__}"[:_WORDS_MAX_CHARACTERS])
        sys.stderr.flush()  # the process ends without doing so itself
        return UNREADABLE
    Path(target).write_bytes(markdown)
    return 0


def _leave_the_network() -> None:
    """Go where there is no network, if the system lets a process do that."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


if __name__ == "__main__":
    # Nothing that libraries leave for the interpreter's end is waited for.
    os._exit(main(sys.argv[1:]))
