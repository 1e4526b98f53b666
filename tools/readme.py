"""Writes the README's tables of calls and of settings, from the contract and from the code.

`--check` writes nothing and ends with 1 when the README says something else.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from hansard_server.config import describe

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
IMAGE = ROOT / "generated" / "hansard" / "hansard.binpb"
PACKAGE = "hansard.v1"
# Numbers of fields in descriptor.proto, as paths in source code info name them.
_SERVICE, _METHOD = 6, 2


def with_tables(text: str) -> str:
    """Return the README's text with both tables as they ought to be."""
    return _between(_between(text, "calls", calls()), "settings", settings())


def calls() -> str:
    """Return the table of calls: the first sentence of each comment in the contract."""
    rows = [row for file in _services() for row in _methods(file)]
    return _table(("call", "", "what it does"), rows)


def settings() -> str:
    """Return the table of settings."""
    rows = [
        (f"`{row.name}`", f"`{row.default}`" if row.default else "", row.unit, row.description)
        for row in describe()
    ]
    return _table(("setting", "default", "unit", "what it says"), rows)


def _services() -> Iterator[FileDescriptorProto]:
    image = FileDescriptorSet.FromString(IMAGE.read_bytes())
    yield from (file for file in image.file if file.package == PACKAGE and file.service)


def _methods(file: FileDescriptorProto) -> Iterator[tuple[str, ...]]:
    comments = {
        tuple(location.path): location.leading_comments
        for location in file.source_code_info.location
    }
    for number, service in enumerate(file.service):
        for index, method in enumerate(service.method):
            comment = " ".join(comments[_SERVICE, number, _METHOD, index].split())
            streams = {
                (True, False): "client stream",
                (False, True): "server stream",
            }.get((method.client_streaming, method.server_streaming), "")
            yield f"{service.name}/{method.name}", streams, re.split(r"(?<=[.]) ", comment)[0]


def _table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    # What Markdown would take for a column's end, or for HTML.
    return text.replace("|", r"\|").replace("<", r"\<")


def _between(text: str, name: str, table: str) -> str:
    pattern = re.compile(rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{README.name}: there is no place for the {name}")
    return pattern.sub(lambda match: f"{match[1]}\n{table}\n\n{match[2]}", text)


def main() -> int:
    """Write the tables, or check them."""
    text = README.read_text(encoding="utf-8")
    wanted = with_tables(text)
    if "--check" in sys.argv[1:]:
        return int(text != wanted)
    README.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
