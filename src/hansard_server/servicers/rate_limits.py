"""What one key, and one agent, may ask for: calls and streams at a time, and how many a second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hansard_server.access.rates import RateLimiter
from hansard_server.domain.access import Caller
from hansard_server.domain.errors import QuotaExceeded, QuotaUse, RateLimitExceeded
from hansard_server.domain.rates import Rate
from hansard_server.domain.values import dataclass
from hansard_server.servicers.interceptors import Call, Proceed

_RETRY_AFTER_S = 1.0


@dataclass(slots=True)
class _Held:
    calls: int = 0
    streams: int = 0


class KeyLimits:
    """Counts what each key holds in this process, and asks for its rate.

    Without authentication all callers are one key. Calls that anybody may make pass.
    """

    name = "key_limits"

    def __init__(
        self, limiter: RateLimiter, *, max_calls: int, max_streams: int, rate: Rate | None
    ) -> None:
        self._limiter = limiter
        self._max_calls = max_calls
        self._max_streams = max_streams
        self._rate = rate
        self._held: dict[tuple[str, str], _Held] = {}

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Serve the call. Raises RateLimitExceeded, QuotaExceeded, StoreUnavailable."""
        caller = call.caller
        if caller is None:
            return await proceed(call)
        if self._rate is not None:
            await self._limiter.take(
                caller.tenant, f"key:{caller.key_id}", self._rate, words="too many calls of the key"
            )
        name = (caller.tenant, caller.key_id)
        held = self._held.get(name)
        if held is None:
            held = self._held[name] = _Held()
        if call.method.request_streaming or call.method.response_streaming:
            return await self._stream(call, proceed, caller, held)
        if held.calls >= self._max_calls:
            raise RateLimitExceeded(
                f"the key makes {held.calls} calls at a time, as many as it may",
                retry_after_s=_RETRY_AFTER_S,
            )
        held.calls += 1
        try:
            return await proceed(call)
        finally:
            held.calls -= 1
            self._forget(name, held)

    async def _stream(self, call: Call, proceed: Proceed, caller: Caller, held: _Held) -> Any:
        if held.streams >= self._max_streams:
            raise QuotaExceeded(
                f"the key has {held.streams} streams open, as many as it may; close some",
                quota=QuotaUse(
                    name="key_max_streams",
                    subject=f"key:{caller.key_id}",
                    limit=self._max_streams,
                    used=held.streams,
                ),
            )
        held.streams += 1
        try:
            return await proceed(call)
        finally:
            held.streams -= 1
            self._forget((caller.tenant, caller.key_id), held)

    def _forget(self, name: tuple[str, str], held: _Held) -> None:
        if not held.calls and not held.streams:
            self._held.pop(name, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRate:
    """A rate of calls that name an agent in `agent_key`.

    Attributes:
        subject: names the rate where agents' buckets are kept.
        words: what was too many.
        has: only calls whose request has this field; None: all.
    """

    rate: Rate
    subject: str
    words: str
    has: str | None = None


def agent_rates(*, max_sessions_per_s: float, max_inputs_per_s: float) -> Mapping[str, AgentRate]:
    """Return the rates by method; 0 is none."""
    rates = {}
    if max_sessions_per_s:
        rates["/hansard.v1.SessionService/CreateSession"] = AgentRate(
            rate=Rate(max_sessions_per_s), subject="sessions", words="too many new sessions"
        )
    if max_inputs_per_s:
        rates["/hansard.v1.EventService/SendEvent"] = AgentRate(
            rate=Rate(max_inputs_per_s),
            subject="inputs",
            words="too many inputs",
            has="input_message",
        )
    return rates


class AgentRates:
    """Asks for the rate of the agent that a call is about: when its caller may make the call."""

    name = "agent_rates"

    def __init__(self, limiter: RateLimiter, rates: Mapping[str, AgentRate]) -> None:
        """Take the rates by the full name of their method."""
        self._limiter = limiter
        self._rates = rates

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Serve the call. Raises RateLimitExceeded, StoreUnavailable."""
        limit = self._rates.get(call.method.name)
        if limit is not None and call.caller is not None:
            request = call.request
            if limit.has is None or request.HasField(limit.has):
                await self._limiter.take(
                    call.caller.tenant,
                    f"{limit.subject}:{request.agent_key}",
                    limit.rate,
                    words=f"{limit.words} of agent {request.agent_key}",
                )
        return await proceed(call)
