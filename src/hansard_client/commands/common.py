"""What all commands share: --target, --timeout, --json, and one clear line when something fails."""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, TypeVar

import grpc
import typer
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message
from rich.console import Console

from hansard_client.connection import DEFAULT_TARGET, DEFAULT_TIMEOUT_S, Connection
from hansard_client.errors import Mistake, describe
from hansard_client.rendering import Column, make_console, print_json, print_table
from hansard_client.text import one_line

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

Target = Annotated[
    str, typer.Option(help="The server.", envvar="HANSARD_TARGET", metavar="HOST:PORT")
]
Timeout = Annotated[
    float,
    typer.Option(help="Seconds to wait for an answer, or for a server to return.", min=0.1),
]
Json = Annotated[bool, typer.Option("--json", help="JSON, an object a line, instead of a table.")]
AgentKey = Annotated[str, typer.Argument(metavar="AGENT", help="The agent's key.")]
SessionKey = Annotated[str, typer.Argument(metavar="SESSION", help="The session's key.")]
Limit = Annotated[int, typer.Option(help="How many at most; 0: all.", min=0)]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
LIMIT_DEFAULT = 100

AnyMessage = TypeVar("AnyMessage", bound=Message)


@dataclass(frozen=True, slots=True)
class Caller:
    """What a command works with: the connection, where it prints, and how.

    Attributes:
        connection: to the server.
        out: stdout.
        err: stderr.
        as_json: whether it prints for programs.
    """

    connection: Connection
    out: Console
    err: Console
    as_json: bool

    def show(self, columns: Sequence[Column], items: Iterable[Any], *, limit: int = 0) -> None:
        """Print items: a table, or a JSON line for each. Say so when the limit left some out."""
        if self.as_json:
            for item in items:
                print_json(self.out, item)
            return
        count = print_table(self.out, columns, items)
        if limit and count == limit:
            self.say(f"Shown: {limit}. There may be more (--limit).")

    def show_one(self, message: Message) -> None:
        """Print one resource in full: JSON on one line with --json, else indented."""
        print_json(self.out, message, indent=None if self.as_json else 2)

    def say(self, text: str) -> None:
        """Tell the person something that is no result."""
        self.err.print(one_line(text), soft_wrap=True)

    def confirm(self, question: str, *, yes: bool) -> None:
        """Return when it may be done; Mistake when not."""
        if yes:
            return
        if not sys.stdin.isatty():
            raise Mistake(f"{question} Say so with --yes.")
        if not typer.confirm(one_line(question)):
            raise Mistake("nothing was done")


def command(
    app: typer.Typer, name: str, *, json: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command of the app: it is given a Caller, and the common options are added.

    Whatever fails ends it with one line on stderr and exit code 1.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def run(*, target: str, timeout: float, as_json: bool = False, **given: Any) -> None:
            err = make_console(sys.stderr)
            try:
                with Connection(target, timeout_s=timeout) as connection:
                    function(Caller(connection, make_console(), err, as_json), **given)
            except grpc.RpcError as error:
                _fail(err, describe(error, target))
            except grpc.FutureCancelledError:
                _fail(err, "the call was cancelled")
            except Mistake as error:
                _fail(err, str(error))
            except BrokenPipeError:
                raise
            except OSError as error:
                _fail(err, f"{error.filename}: {error.strerror}" if error.filename else str(error))
            except KeyboardInterrupt:
                raise typer.Exit(EXIT_INTERRUPTED) from None

        functools.update_wrapper(run, function)
        del run.__wrapped__  # type: ignore[attr-defined] # the wrapper's own signature is read
        _sign(run, function, json=json)
        app.command(name)(run)
        return run

    return decorate


def _sign(run: Callable[..., None], function: Callable[..., None], *, json: bool) -> None:
    """Give the wrapper the function's parameters but the first, and the common options."""
    hints = typing.get_type_hints(function, include_extras=True)
    first, *own = inspect.signature(function).parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    common = [
        inspect.Parameter("target", keyword, default=DEFAULT_TARGET, annotation=Target),
        inspect.Parameter("timeout", keyword, default=DEFAULT_TIMEOUT_S, annotation=Timeout),
        *([inspect.Parameter("as_json", keyword, default=False, annotation=Json)] if json else []),
    ]
    parameters = [p.replace(annotation=hints[p.name], kind=keyword) for p in own] + common
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # read by typer
    run.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    del first


def parse(message: AnyMessage, fields: Mapping[str, Any], what: str) -> AnyMessage:
    """Return the message filled from JSON with the contract's field names. Raises Mistake."""
    try:
        return ParseDict(dict(fields), message)
    except (ParseError, ValueError, TypeError, RecursionError) as error:
        raise Mistake(f"{what}: {error}") from None


def _fail(err: Console, words: str) -> NoReturn:
    err.print(f"hansard: {one_line(words)}", soft_wrap=True)
    raise typer.Exit(EXIT_FAILED)
