"""Requests are parsed and held to the rules of the contract here, and nowhere else."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

from google.protobuf.message import DecodeError, Message
from protovalidate import EvaluationError, Validator, Violation

from hansard.v1.artifact_service_pb2 import UploadArtifactsRequest
from hansard_server.domain.errors import FieldViolation, InvalidRequest, PayloadTooLarge
from hansard_server.lifecycle import Drain
from hansard_server.servicers.chunks import take_chunk
from hansard_server.servicers.interceptors import Call, Proceed
from hansard_server.servicers.struct_sizes import check_struct_sizes

# Naming every fault of a large message would cost more than the message: there, one is named.
_ALL_FAULTS_MAX_BYTES = 16 * 1024
_PLAIN_KEY = re.compile(r"[0-9A-Za-z_-]{1,64}\Z")
_KEY_SHOWN_CHARACTERS = 64


class Validation:
    """Bytes become messages that keep to the contract."""

    name = "validation"

    def __init__(self, drain: Drain, *, request_max_bytes: int, metadata_max_bytes: int) -> None:
        """Streams of requests end when `drain` begins."""
        self._drain = drain
        self._request_max_bytes = request_max_bytes
        self._metadata_max_bytes = metadata_max_bytes
        self._validator = Validator()

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Serve the call with parsed requests. Raises InvalidRequest, PayloadTooLarge."""
        if call.method.request_streaming:
            call.request = self._receive(call, call.request)
        else:
            call.request = self.parse(call.request, call.method.parse)
        return await proceed(call)

    def parse(self, raw: bytes, parse: Callable[[bytes], Any]) -> Any:
        """Return the message of the bytes. Raises InvalidRequest, InvalidMetadata, PayloadTooLarge.

        `parse` is the FromString of a message.
        """
        if len(raw) > self._request_max_bytes:
            raise PayloadTooLarge(
                f"the request has {len(raw)} bytes, {self._request_max_bytes} are taken at most",
                metadata={"request_max_bytes": str(self._request_max_bytes)},
            )
        kind: type[Message] = parse.__self__  # type: ignore[attr-defined]
        check_struct_sizes(raw, kind.DESCRIPTOR, self._metadata_max_bytes)
        try:
            message = parse(raw)
        except DecodeError:
            raise InvalidRequest("the request is not a message of this call's type") from None
        self.check(message, len(raw))
        return message

    def check(self, message: Message, size_bytes: int) -> None:
        """Do nothing, or raise InvalidRequest, for a message against the contract's rules."""
        try:
            broken = self._validator.collect_violations(message, fail_fast=True)
            if not broken:
                return
            if size_bytes <= _ALL_FAULTS_MAX_BYTES:
                broken = self._validator.collect_violations(message)
        except EvaluationError:
            # A value that a rule can't be computed with, such as a time out of all calendars.
            raise InvalidRequest("a value of the request is out of its range") from None
        raise invalid_request(tuple(_to_field_violation(violation) for violation in broken))

    async def _receive(self, call: Call, raw: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        """Yield messages, and of uploads the bytes of chunks without their messages."""
        source, parse = aiter(raw), call.method.parse
        takes_chunks = parse == UploadArtifactsRequest.FromString
        while True:
            try:
                received = await self._drain.unless_started(lambda: anext(source))
            except StopAsyncIteration:
                return
            if takes_chunks and len(received) <= self._request_max_bytes:
                chunk = take_chunk(received)
                if chunk is not None:
                    yield chunk
                    continue
            yield self.parse(received, parse)


def invalid_request(violations: tuple[FieldViolation, ...]) -> InvalidRequest:
    """Return the error; its message names the first field."""
    first = violations[0]
    message = f"{first.field}: {first.description}" if first.field else first.description
    if len(violations) > 1:
        message += f" (and {len(violations) - 1} more)"
    return InvalidRequest(message, violations=violations)


def _to_field_violation(violation: Violation) -> FieldViolation:
    proto = violation.proto
    path = ""
    for element in proto.field.elements if proto.field else ():
        path += ("." if path else "") + element.field_name
        if element.subscript is not None:
            path += _subscript(element.subscript.field, element.subscript.value)
    description = proto.message
    # A rule of a whole message says by its id which field it is about.
    prefix = f"{proto.rule_id}: "
    if description.startswith(prefix):
        path += ("." if path else "") + proto.rule_id
        description = description.removeprefix(prefix)
    if proto.for_key:
        description = f"the key {description}"
    return FieldViolation(path, description)


def _subscript(kind: str, value: object) -> str:
    if kind == "index":
        return f"[{value}]"
    text = str(value)
    if _PLAIN_KEY.match(text):
        return f".{text}"
    return f"[{json.dumps(text[:_KEY_SHOWN_CHARACTERS])}]"
