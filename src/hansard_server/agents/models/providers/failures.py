"""What goes wrong at a provider, in our words, and without its keys."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable

import httpx2
import structlog
from pydantic_ai.exceptions import (
    ContentFilterError,
    ModelAPIError,
    ModelConnectionError,
    ModelContextWindowExceededError,
    ModelHTTPError,
    ModelQuotaExceededError,
    ModelRateLimitError,
    ModelRequestRejectedError,
    ModelRequestTimeout,
    UnexpectedModelBehavior,
    UserError,
)

from hansard_server.agents.api import ContextOverflow, ModelFailed, ModelInterrupted

_log = structlog.get_logger(__name__)

_MESSAGE_MAX_CHARACTERS = 500
_KEY_EDGE_CHARACTERS = 6
_REDACTED = "[redacted]"
# Keys as providers make them, and as they show them: `sk-pr***abcd`.
_KEY_LIKE = re.compile(
    r"(?i)\b(?:bearer\s+)?(?:sk|pk|rk|xai|gsk|hf|key|nvapi|AIza)[-_*0-9a-z]*[-_*][-_*0-9a-z]{3,}"
    r"|\bAIza[-_*0-9a-zA-Z]{6,}|\bbearer\s+\S+"
)
# 128,000 or 128000, with words before that tell which of two numbers it is.
_NUMBER = r"([0-9][0-9,]*)"
_LIMITS = (
    re.compile(rf"(?i)maximum (?:context length|number of tokens allowed)\D{{0,12}}{_NUMBER}"),
    re.compile(rf"(?i)>\s*{_NUMBER}\s*maximum"),
)
_ACTUALS = (
    re.compile(rf"(?i)prompt is too long:\s*{_NUMBER}"),
    re.compile(rf"(?i)(?:resulted in|requested|input token count\D{{0,6}})\s*\(?{_NUMBER}"),
)
_RETRYABLE_STATUS = frozenset({408, 409, 425, 429})
_SERVER_ERRORS_FROM = 500


class Failures:
    """Says what an exception of a provider's client means for a model call."""

    def __init__(self, model_name: str, secrets: Iterable[str]) -> None:
        """Speak of the model by this name, and never show these secrets."""
        self._name = model_name
        self._secrets = tuple(secret for secret in secrets if secret)

    def of(self, error: Exception) -> ModelFailed:  # noqa: C901, PLR0911 - a table
        """Return the failure to raise."""
        match error:
            case ModelFailed():
                return error
            case ModelContextWindowExceededError():
                return self._overflow(error)
            case ModelQuotaExceededError() | ModelRequestRejectedError():
                return ModelFailed(self._words(error))
            case ModelRateLimitError():
                return ModelInterrupted(self._words(error), retry_after_s=error.retry_after)
            case ModelHTTPError():
                status = error.status_code
                if status in _RETRYABLE_STATUS or status >= _SERVER_ERRORS_FROM:
                    return ModelInterrupted(self._words(error), retry_after_s=error.retry_after)
                return ModelFailed(self._words(error))
            case ModelConnectionError() | ModelRequestTimeout() | httpx2.HTTPError():
                return ModelInterrupted(f"{self._name} can't be reached: {self._text(error)}")
            case ModelAPIError():
                return ModelInterrupted(self._words(error), retry_after_s=error.retry_after)
            case UserError() | ContentFilterError():
                return ModelFailed(self._words(error))
            case UnexpectedModelBehavior():
                # Such as an answer with nothing in it.
                return ModelInterrupted(self._words(error))
            case _:
                # A client's surprise at what it was sent. Its words may hold a key, or a message.
                trace = "".join(traceback.format_tb(error.__traceback__))
                kind = type(error).__name__
                _log.warning("provider unreadable", model=self._name, error=kind, trace=trace)
                return ModelInterrupted(f"{self._name} answered with what can't be read.")

    def redact(self, text: str) -> str:
        """Return the text without keys, as they are or as providers show parts of them."""
        for secret in self._secrets:
            text = text.replace(secret, _REDACTED)
            if len(secret) > 2 * _KEY_EDGE_CHARACTERS:
                head, tail = secret[:_KEY_EDGE_CHARACTERS], secret[-_KEY_EDGE_CHARACTERS:]
                text = re.sub(rf"\S*(?:{re.escape(head)}|{re.escape(tail)})\S*", _REDACTED, text)
        return _KEY_LIKE.sub(_REDACTED, text)

    def _words(self, error: Exception) -> str:
        status = f"HTTP {error.status_code}: " if isinstance(error, ModelHTTPError) else ""
        return f"{self._name}: {status}{self._text(error)}"

    def _text(self, error: Exception) -> str:
        body = getattr(error, "body", None)
        text = _message_in(body) or getattr(error, "message", "") or str(error)
        text = " ".join(self.redact(text or type(error).__name__).split())
        return text[:_MESSAGE_MAX_CHARACTERS]

    def _overflow(self, error: Exception) -> ContextOverflow:
        text = self._text(error)
        return ContextOverflow(
            f"{self._name}: {text}",
            context_limit=_first_number(_LIMITS, text),
            actual_tokens=_first_number(_ACTUALS, text),
        )


def _message_in(body: object) -> str:
    """Return the message in an error's body, as the providers have it."""
    if isinstance(body, list) and body:
        body = body[0]
    if not isinstance(body, dict):
        return ""
    error = body.get("error", body)
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""


def _first_number(patterns: Iterable[re.Pattern[str]], text: str) -> int:
    for pattern in patterns:
        found = pattern.search(text)
        if found is not None:
            return int(found[1].replace(",", ""))
    return 0
