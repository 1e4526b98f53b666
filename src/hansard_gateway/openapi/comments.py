"""What the contract's comments say, by the full name of what they stand at."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet

import hansard

# The numbers of the fields of FileDescriptorProto and DescriptorProto that hold what has comments.
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6
_FIELDS, _NESTED = 2, 3


@cache
def comments() -> dict[str, str]:
    """Return every comment of the contract."""
    image = resources.files(hansard).joinpath("hansard.binpb").read_bytes()
    found: dict[str, str] = {}
    for file in FileDescriptorSet.FromString(image).file:
        if not file.package.startswith("hansard."):
            continue
        said = {
            tuple(place.path): place.leading_comments
            for place in file.source_code_info.location
            if place.leading_comments
        }
        for name, path in _named(file):
            if path in said:
                lines = (line.strip() for line in said[path].strip().splitlines())
                found[f"{file.package}.{name}"] = " ".join(lines)
    return found


def _named(file: Any) -> Iterable[tuple[str, tuple[int, ...]]]:
    for index, message in enumerate(file.message_type):
        yield from _of_message(message, "", (_MESSAGES, index))
    for index, enum in enumerate(file.enum_type):
        yield enum.name, (_ENUMS, index)
    for index, service in enumerate(file.service):
        yield service.name, (_SERVICES, index)
        for number, method in enumerate(service.method):
            yield f"{service.name}.{method.name}", (_SERVICES, index, _FIELDS, number)


def _of_message(
    message: Any, parent: str, path: tuple[int, ...]
) -> Iterable[tuple[str, tuple[int, ...]]]:
    name = f"{parent}{message.name}"
    yield name, path
    for index, field in enumerate(message.field):
        yield f"{name}.{field.name}", (*path, _FIELDS, index)
    for index, nested in enumerate(message.nested_type):
        yield from _of_message(nested, f"{name}.", (*path, _NESTED, index))
