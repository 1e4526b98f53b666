"""What the server tells its operators: structured lines on standard error."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import MutableMapping
from dataclasses import fields
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii
from typing import Any

import structlog

from hansard_server.domain.values import dataclass

LEVELS = ("debug", "info", "warning", "error")
_calls_log = structlog.get_logger("hansard.access")


def configure(level: str = "info") -> None:
    """Write logs to standard error: JSON, one line each, or coloured text on a terminal.

    Lines of other libraries take the same way. Tracebacks show no variables, since those hold what
    callers sent.
    """
    terminal = sys.stderr.isatty()
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if not terminal:
        shared.append(structlog.processors.format_exc_info)
    renderer: Any = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if terminal
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, _name_logger, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    global _plain_lines  # noqa: PLW0603 - logging is configured for the whole process
    _plain_lines = None if terminal or number > logging.INFO else _Lines()
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(number, logging.WARNING))


def _name_logger(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    event.setdefault("logger", "hansard")
    return event


def leave() -> None:
    """Write no more to the standard error that `configure` has found."""
    global _plain_lines  # noqa: PLW0603
    _plain_lines = None


@dataclass(slots=True, kw_only=True)
class EndedCall:
    """What the log tells of a call."""

    method: str
    code: str
    reason: str | None
    duration_ms: float
    request_id: str
    peer: str
    tenant: str | None
    key_id: str | None

    def line(self, now: str) -> str:
        """Return the line that structlog makes of it; `now` as structlog writes the time."""
        return (
            f'{{"method": {_text(self.method)}, "code": {_text(self.code)}, '
            f'"reason": {_text(self.reason)}, "duration_ms": {self.duration_ms!r}, '
            f'"request_id": {_text(self.request_id)}, "peer": {_text(self.peer)}, '
            f'"tenant": {_text(self.tenant)}, "key_id": {_text(self.key_id)}, '
            f'"event": "call", "level": "info", "timestamp": {_text(now)}, "logger": "hansard"}}'
        )


def log_call(call: EndedCall, *, quiet: bool = False) -> None:
    """Write the line of a call; a quiet one at the level debug."""
    if _plain_lines is not None and not quiet:
        _plain_lines.write(call, datetime.now(UTC))
        return
    write = _calls_log.debug if quiet else _calls_log.info
    write("call", **{field.name: getattr(call, field.name) for field in fields(call)})


def _text(text: str | None) -> str:
    return "null" if text is None else encode_basestring_ascii(text)


class _Lines:
    """Makes and writes the lines of one round of the event loop together, behind the answers."""

    def __init__(self) -> None:
        self._calls: list[tuple[EndedCall, datetime]] = []
        self._output = structlog.WriteLogger(sys.stderr)

    def write(self, call: EndedCall, now: datetime) -> None:
        if not self._calls:
            asyncio.get_running_loop().call_soon(self._flush)
        self._calls.append((call, now))

    def _flush(self) -> None:
        text = "\n".join(
            call.line(now.isoformat().replace("+00:00", "Z")) for call, now in self._calls
        )
        self._calls.clear()
        self._output.msg(text)


_plain_lines: _Lines | None = None
"""For lines that need not go through structlog."""
