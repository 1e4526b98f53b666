"""Attempts: a model call whose failure may pass is made again, within the time of its step."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeVar

import structlog

from hansard.v1 import agent_pb2
from hansard_server.agents.api import (
    Json,
    Model,
    ModelInterrupted,
    ModelRequest,
    Part,
    TurnRecorder,
)
from hansard_server.agents.begun import Begun
from hansard_server.agents.limits import AgentLimits
from hansard_server.domain.errors import ModelUnavailable
from hansard_server.domain.values import dataclass

T = TypeVar("T")

INITIAL_BACKOFF_S = 1.0
MAX_BACKOFF_S = 30.0
BACKOFF_FACTOR = 2.0
_JITTER = 0.2

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How often, and how soon, a call is made again; times in seconds."""

    max_retries: int = 3
    initial_s: float = INITIAL_BACKOFF_S
    max_s: float = MAX_BACKOFF_S
    factor: float = BACKOFF_FACTOR

    @classmethod
    def of(cls, policy: agent_pb2.RetryPolicy, limits: AgentLimits) -> Backoff:
        """Return what the agent's policy says, and for the rest the server's settings."""
        initial, longest = INITIAL_BACKOFF_S, MAX_BACKOFF_S
        if policy.HasField("initial_backoff"):
            initial = policy.initial_backoff.ToTimedelta().total_seconds()
        if policy.HasField("max_backoff"):
            longest = policy.max_backoff.ToTimedelta().total_seconds()
        return cls(
            max_retries=policy.max_retries
            if policy.HasField("max_retries")
            else limits.model_retries,
            initial_s=initial,
            max_s=longest,
            factor=policy.factor if policy.HasField("factor") else BACKOFF_FACTOR,
        )

    def wait_s(self, retry: int, asked_s: float | None) -> float:
        """Return how long to wait before the `retry`-th repetition, counted from 0; `asked_s`: what
        the provider asked for, and gets.
        """
        wait_s = min(self.initial_s * self.factor**retry, self.max_s)
        # Those who failed together should not come back together.
        jitter = 1 + _JITTER * random.random()  # noqa: S311 - nobody gains by guessing it
        return max(wait_s / jitter, (asked_s or 0) * jitter)


class Attempts:
    """The attempts at the model calls of one turn. As a Model it is the turn's own, which ends with
    the step's time.
    """

    def __init__(
        self, model: Model, recorder: TurnRecorder, backoff: Backoff, *, step_max_s: float
    ) -> None:
        """Make attempts at `model`, whose answers `recorder` writes."""
        self._model = model
        self._recorder = recorder
        self._backoff = backoff
        self._step_max_s = step_max_s
        self._deadline = 0.0

    async def make(
        self, call: Callable[[], Awaitable[T]], refresh: Callable[[], Awaitable[object]]
    ) -> T:
        """Return what `call` does, once it did not end in ModelInterrupted.

        Before another attempt the open text is dropped, and `refresh` reads what the step has on
        record by now: the next attempt goes on from there. Raises ModelUnavailable when the
        attempts or the time of the step are used up, and whatever else `call` raises.
        """
        self._deadline = asyncio.get_running_loop().time() + self._step_max_s
        retry = 0
        while True:
            try:
                return await call()
            except ModelInterrupted as error:
                await self._wait(retry, error)
            retry += 1
            self._recorder.drop_text()
            await refresh()

    async def _wait(self, retry: int, error: ModelInterrupted) -> None:
        if retry >= self._backoff.max_retries:
            raise ModelUnavailable(str(error)) from error
        wait_s = self._backoff.wait_s(retry, error.retry_after_s)
        if asyncio.get_running_loop().time() + wait_s >= self._deadline:
            raise ModelUnavailable(
                f"{error} (Another try in {wait_s:.3g} s would be beyond the time of a model call, "
                f"{self._step_max_s:g} s.)"
            ) from error
        _log.info("model_call_repeated", retry=retry + 1, wait_s=round(wait_s, 3), why=str(error))
        await asyncio.sleep(wait_s)

    @property
    def context_tokens(self) -> int | None:
        """As the model has it."""
        return self._model.context_tokens

    def check_parameters(self, parameters: Mapping[str, Json]) -> None:
        """As the model does."""
        self._model.check_parameters(parameters)

    async def respond(self, request: ModelRequest) -> AsyncGenerator[Part]:
        """Yield the model's parts. Raises ModelUnavailable when the step's time is over; only the
        wait for the model is cut short then, never a write.
        """
        parts = self.begin(request)
        try:
            while True:
                begun = Begun(anext(parts, None))
                part = begun.value if begun.done else await self.within_time(begun)
                if part is None:
                    return
                yield part
        finally:
            await close(parts)

    def begin(self, request: ModelRequest) -> AsyncIterator[Part]:
        """Return the model's own parts, for whoever waits for each `within_time`."""
        return self._model.respond(request)

    async def within_time(self, waiting: Awaitable[T]) -> T:
        """Return what `waiting` comes to. Raises ModelUnavailable when the step's time is over."""
        time = asyncio.timeout_at(self._deadline)
        try:
            async with time:
                return await waiting
        except TimeoutError:
            if not time.expired():
                raise
            raise ModelUnavailable(
                f"The model's answer took longer than {self._step_max_s:g} s."
            ) from None


async def close(parts: AsyncIterator[Part]) -> None:
    """End an answer: one that is left in the middle gives back its connection now."""
    end = getattr(parts, "aclose", None)
    if end is not None:
        await end()
