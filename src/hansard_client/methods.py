"""An operation as a method: of a client that waits, and of one on an event loop.

The operation's signature and docstring are those of the method, without its first parameter.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
from types import TracebackType
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from hansard.v1.turn_pb2 import Turn
from hansard_client.blocking import iterate, run
from hansard_client.operations.conversations import Following

Scope = TypeVar("Scope")
Params = ParamSpec("Params")
Made = TypeVar("Made")
Item = TypeVar("Item")
Operation = TypeVar("Operation", bound=Callable[..., Any])


class Part(Generic[Scope]):
    """A part of a client: some operations, and what they work on."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope


class _OfTurn(Generic[Item]):
    """What both kinds of streams know of their turn.

    Attributes:
        request_id: under which the same input follows the same turn again, from another process
            too. Empty when somebody else has sent it.
    """

    def __init__(self, following: Following[Item]) -> None:
        self._following = following
        self._begun = False
        self.request_id = following.request_id

    def __del__(self) -> None:
        if not getattr(self, "_begun", True):
            warnings.warn("a stream was never read: nothing was sent", RuntimeWarning, stacklevel=2)

    @property
    def turn_id(self) -> str:
        """The turn; empty until something came."""
        return self._following.state.turn_id

    @property
    def session_uid(self) -> str:
        """The session's incarnation; empty until something came."""
        return self._following.state.session_uid

    @property
    def sequence(self) -> int:
        """The session's last sequence that was heard of: watch from here to miss nothing."""
        return self._following.state.sequence

    @property
    def turn(self) -> Turn | None:
        """How the turn ended, or that it waits for somebody; None until then."""
        return self._following.state.turn


class TurnStream(_OfTurn[Item]):
    """The items of a turn, one after the other; closing it early leaves the turn to the server."""

    def __init__(self, following: Following[Item]) -> None:
        super().__init__(following)
        self._items = iterate(following.items)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        self._begun = True
        return next(self._items)

    def close(self) -> None:
        """End the stream; the turn goes on."""
        self._begun = True
        self._items.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncTurnStream(_OfTurn[Item]):
    """As TurnStream, for an event loop. One that is left early is best left by `async with`."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        self._begun = True
        return await anext(self._following.items)

    async def aclose(self) -> None:
        """End the stream; the turn goes on."""
        self._begun = True
        await self._following.items.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class _Method(Generic[Scope, Params, Made]):
    """A descriptor: the operation, bound to the part's scope."""

    returns: ClassVar[Mapping[str, str]] = {}

    def __init__(self, operation: Callable[Concatenate[Scope, Params], Made]) -> None:
        self._operation = operation
        self.__doc__ = operation.__doc__

    def _bind(self, part: Part[Scope], convert: Callable[[Made], Item]) -> Callable[Params, Item]:
        operation, scope = self._operation, part._scope  # noqa: SLF001 - the descriptor is its class

        def method(*args: Params.args, **kwargs: Params.kwargs) -> Item:
            return convert(operation(scope, *args, **kwargs))

        return _named(method, operation, self.returns)


class Returning(_Method[Scope, Params, Coroutine[Any, Any, Made]]):
    """A method that returns when it is done."""

    @overload
    def __get__(self, part: None, owner: type) -> Self: ...
    @overload
    def __get__(self, part: Part[Scope], owner: type) -> Callable[Params, Made]: ...
    def __get__(self, part: Part[Scope] | None, owner: type) -> Self | Callable[Params, Made]:
        return self if part is None else self._bind(part, run)


class Iterating(_Method[Scope, Params, AsyncGenerator[Made, None]]):
    """A method that returns a generator."""

    returns: ClassVar[Mapping[str, str]] = {
        "AsyncGenerator": "Generator",
        ", None]": ", None, None]",
    }

    @overload
    def __get__(self, part: None, owner: type) -> Self: ...
    @overload
    def __get__(
        self, part: Part[Scope], owner: type
    ) -> Callable[Params, Generator[Made, None, None]]: ...
    def __get__(
        self, part: Part[Scope] | None, owner: type
    ) -> Self | Callable[Params, Generator[Made, None, None]]:
        return self if part is None else self._bind(part, iterate)


class Streaming(_Method[Scope, Params, Following[Made]]):
    """A method that returns the stream of a turn."""

    returns: ClassVar[Mapping[str, str]] = {"Following": "TurnStream"}

    @overload
    def __get__(self, part: None, owner: type) -> Self: ...
    @overload
    def __get__(self, part: Part[Scope], owner: type) -> Callable[Params, TurnStream[Made]]: ...
    def __get__(
        self, part: Part[Scope] | None, owner: type
    ) -> Self | Callable[Params, TurnStream[Made]]:
        return self if part is None else self._bind(part, TurnStream)


class Awaiting(_Method[Scope, Params, Coroutine[Any, Any, Made]]):
    """A method to be awaited."""

    @overload
    def __get__(self, part: None, owner: type) -> Self: ...
    @overload
    def __get__(
        self, part: Part[Scope], owner: type
    ) -> Callable[Params, Coroutine[Any, Any, Made]]: ...
    def __get__(
        self, part: Part[Scope] | None, owner: type
    ) -> Self | Callable[Params, Coroutine[Any, Any, Made]]:
        return self if part is None else self._bind(part, _same)


class AsyncIterating(_Method[Scope, Params, AsyncGenerator[Made, None]]):
    """A method that returns an asynchronous generator."""

    @overload
    def __get__(self, part: None, owner: type) -> Self: ...
    @overload
    def __get__(
        self, part: Part[Scope], owner: type
    ) -> Callable[Params, AsyncGenerator[Made, None]]: ...
    def __get__(
        self, part: Part[Scope] | None, owner: type
    ) -> Self | Callable[Params, AsyncGenerator[Made, None]]:
        return self if part is None else self._bind(part, _same)


class AsyncStreaming(_Method[Scope, Params, Following[Made]]):
    """A method that returns the stream of a turn, for an event loop."""

    returns: ClassVar[Mapping[str, str]] = {"Following": "AsyncTurnStream"}

    @overload
    def __get__(self, part: None, owner: type) -> Self: ...
    @overload
    def __get__(
        self, part: Part[Scope], owner: type
    ) -> Callable[Params, AsyncTurnStream[Made]]: ...
    def __get__(
        self, part: Part[Scope] | None, owner: type
    ) -> Self | Callable[Params, AsyncTurnStream[Made]]:
        return self if part is None else self._bind(part, AsyncTurnStream)


def _same(made: Made) -> Made:
    return made


def _named(
    method: Callable[Params, Item], operation: Operation, returns: Mapping[str, str]
) -> Callable[Params, Item]:
    """Give the method name, documentation and signature of the operation, for `help`."""
    functools.update_wrapper(method, operation)
    method.__name__ = operation.__name__.rstrip("_")
    signature = inspect.signature(operation)
    parameters = list(signature.parameters.values())[1:]
    annotation = str(signature.return_annotation)
    for ours, theirs in returns.items():
        annotation = annotation.replace(ours, theirs)
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=parameters, return_annotation=annotation
    )
    return method
