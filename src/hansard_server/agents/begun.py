"""Begun: something that is awaited, run as far as it goes without waiting.

Most parts of an answer are there when they are asked for, so that no timer and no task is needed
for them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Begun(Generic[T]):
    """An awaitable that the running task has begun; when it waits, the same task awaits this.

    Attributes:
        done: whether it has ended already.
        value: what it has returned then.
    """

    __slots__ = ("_first", "_passed", "_steps", "done", "value")

    value: T

    def __init__(self, awaitable: Awaitable[T]) -> None:
        """Run it until it waits. Raises what it raises."""
        self._steps = awaitable.__await__()
        self._passed = False
        try:
            self._first = next(self._steps)
        except StopIteration as end:
            self.done = True
            self.value = end.value
        else:
            self.done = False

    def __await__(self) -> Generator[Any, Any, T]:
        """Go on from where it waits; to be awaited once, before the task waits for anything."""
        return self

    def __iter__(self) -> Generator[Any, Any, T]:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        """Hand on what the event loop is to wait for, the first time what is known already."""
        if self._passed:
            return self._steps.send(value)
        self._passed = True
        return self._first

    def throw(self, *error: Any) -> Any:
        """Raise it where the awaitable waits."""
        self._passed = True
        return self._steps.throw(*error)

    def close(self) -> None:
        """End it where it waits."""
        self._steps.close()
