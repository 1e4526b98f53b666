"""A turn in the words of the documented API: texts come in pieces, and end with their event."""

from __future__ import annotations

from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as quote
from typing import Any, Final

from hansard.v1 import event_service_pb2
from hansard_gateway.json_writer import member, to_json

_NAMES: Final = {
    event_service_pb2.DELTA_KIND_THINKING: "thinking",
    event_service_pb2.DELTA_KIND_AGENT_OUTPUT: "agent_output",
}
_TEXTS: Final = frozenset(_NAMES.values())


class Teller:
    """Turns what happens into JSON objects, each stored event once, though a stream be repeated.

    Attributes:
        sequence: the last one that was told; a place to resume from.
    """

    def __init__(self, sequence: int = 0, *, whole_texts: bool) -> None:
        """Tell what comes after `sequence`.

        `whole_texts`: the event of a text is told too, after its pieces.
        """
        self.sequence = sequence
        self._whole_texts = whole_texts
        self._open_id = ""
        self._open_name = ""
        self._open_bytes = 0
        self._finished: set[str] = set()

    def delta(self, delta: event_service_pb2.Delta) -> list[str]:
        """Return what is new of the text."""
        if delta.event_id in self._finished:
            return []
        told = self._open(delta.event_id, _NAMES.get(delta.kind, "agent_output"))
        new = delta.text
        known = self._open_bytes - delta.offset
        if known > 0:
            new = new.encode()[known:].decode()
        if new:
            self._open_bytes += len(new) if new.isascii() else len(new.encode())
            told.append(self._piece(new))
        return told

    def event(self, event: Any) -> list[str]:
        """Return the event, with what is missing of its text before it."""
        if event.sequence <= self.sequence:
            return []
        self.sequence = event.sequence
        name = event.WhichOneof("payload")
        if name not in _TEXTS:
            return [to_json(event)] if name else [_tombstone(event)]
        shown = self._open_id == event.id
        if self._whole_texts and not shown:
            return [to_json(event)]
        if name == "thinking" and not shown:
            return [to_json(event)]
        return [*self._finish(event, name), *([to_json(event)] if self._whole_texts else [])]

    def void(self, event_id: str = "") -> list[str]:
        """Return that the open text, if it is this one, will not be stored."""
        if not self._open_id or event_id not in {"", self._open_id}:
            return []
        ended = (
            f'{{"type":"streaming_{self._open_name}_end","voided":true,'
            f'"voided_event_id":{quote(self._open_id)},{_now()}}}'
        )
        self._open_id, self._open_bytes = "", 0
        return [ended]

    def _open(self, event_id: str, name: str) -> list[str]:
        if self._open_id == event_id:
            return []
        told = self.void()
        self._open_id, self._open_name, self._open_bytes = event_id, name, 0
        return told

    def _finish(self, event: Any, name: str) -> list[str]:
        told = self._open(event.id, name)
        payload = getattr(event, name)
        rest = payload.content.encode()[self._open_bytes :].decode()
        if rest:
            told.append(self._piece(rest))
        partial = ',"partial":true' if payload.partial else ""
        told.append(
            f'{{"type":"streaming_{name}_end","event_id":{quote(event.id)},'
            f'"sequence":{event.sequence},"turn_id":{quote(event.turn_id)}{partial},{_now()}}}'
        )
        self._finished.add(event.id)
        self._open_id, self._open_bytes = "", 0
        return told

    def _piece(self, text: str) -> str:
        return (
            f'{{"type":"streaming_{self._open_name}","content":{quote(text)},'
            f'"event_id":{quote(self._open_id)},{_now()}}}'
        )


def _tombstone(event: Any) -> str:
    return f'{{"type":"deleted",{to_json(event)[1:]}'


def _now() -> str:
    return member("created_at", datetime.now(UTC).isoformat().replace("+00:00", "Z"))
