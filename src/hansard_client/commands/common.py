"""What all commands share: where the server is, --json, and one clear line when something fails."""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from google.protobuf.message import Message
from rich.console import Console

from hansard_client.channels import DEFAULT_TARGET, DEFAULT_TIMEOUT_S, Tls
from hansard_client.client import Hansard
from hansard_client.commands.rendering import Column, make_console, print_json, print_table
from hansard_client.commands.text import one_line
from hansard_client.credentials import default_key
from hansard_client.errors import DeadlineExceeded, HansardError, Unreachable

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

_LINE_MAX_CHARACTERS = 1_000
_PANEL = "Connection"

Target = Annotated[
    str,
    typer.Option(
        help="The server; several with commas between.",
        envvar="HANSARD_TARGET",
        metavar="HOST:PORT",
        rich_help_panel=_PANEL,
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        help="Seconds to wait for an answer, or for a server to return.",
        min=0.1,
        rich_help_panel=_PANEL,
    ),
]
ApiKey = Annotated[
    str,
    typer.Option(
        help="The API key, or a token. Others on this machine may see what is typed: better set "
        "the variable. Default: admin.key of ./hansard-data, for servers of this machine.",
        envvar="HANSARD_API_KEY",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
UseTls = Annotated[
    bool, typer.Option("--tls", help="Encrypt the connection.", rich_help_panel=_PANEL)
]
TlsCa = Annotated[
    Path | None,
    typer.Option(
        help="PEM file of those whom to believe; implies --tls.",
        envvar="HANSARD_TLS_CA",
        rich_help_panel=_PANEL,
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(
        help="PEM file of one's own certificate; goes with --tls-key.",
        envvar="HANSARD_TLS_CERT",
        rich_help_panel=_PANEL,
    ),
]
TlsKey = Annotated[
    Path | None,
    typer.Option(
        help="PEM file of its private key.", envvar="HANSARD_TLS_KEY", rich_help_panel=_PANEL
    ),
]
Json = Annotated[bool, typer.Option("--json", help="JSON, an object a line, instead of a table.")]
AgentKey = Annotated[str, typer.Argument(metavar="AGENT", help="The agent's key.")]
SessionKey = Annotated[str, typer.Argument(metavar="SESSION", help="The session's key.")]
Limit = Annotated[int, typer.Option(help="How many at most; 0: all.", min=0)]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
LIMIT_DEFAULT = 100


class Mistake(Exception):  # noqa: N818 - mostly not the program's
    """Something that the person who called has to know: one line."""


@dataclass(frozen=True, slots=True)
class Caller:
    """What a command works with: the client, where it prints, and how.

    Attributes:
        hansard: the client.
        out: stdout.
        err: stderr.
        as_json: whether it prints for programs.
    """

    hansard: Hansard
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
        def run(*, as_json: bool = False, **given: Any) -> None:
            err = make_console(sys.stderr)
            names = _COMMON_NAMES & given.keys()
            common = {name: given.pop(name) for name in names}
            try:
                with _connect(**common) as hansard:
                    function(Caller(hansard, make_console(), err, as_json), **given)
            except HansardError as error:
                _fail(err, describe(error))
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
        *([inspect.Parameter("as_json", keyword, default=False, annotation=Json)] if json else []),
        *(
            inspect.Parameter(name, keyword, default=default, annotation=annotation)
            for name, default, annotation in _COMMON
        ),
    ]
    parameters = [p.replace(annotation=hints[p.name], kind=keyword) for p in own] + common
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # read by typer
    run.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    del first


_COMMON: tuple[tuple[str, Any, Any], ...] = (
    ("target", DEFAULT_TARGET, Target),
    ("timeout", DEFAULT_TIMEOUT_S, Timeout),
    ("api_key", "", ApiKey),
    ("tls", False, UseTls),
    ("tls_ca", None, TlsCa),
    ("tls_cert", None, TlsCert),
    ("tls_key", None, TlsKey),
)
_COMMON_NAMES = frozenset(name for name, _, _ in _COMMON)


def _connect(
    *,
    target: str,
    timeout: float,
    api_key: str,
    tls: bool,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
) -> Hansard:
    """Return the client. Raises Mistake, OSError."""
    files = Tls(
        root_certificates=tls_ca.read_bytes() if tls_ca else None,
        certificate_chain=tls_cert.read_bytes() if tls_cert else None,
        private_key=tls_key.read_bytes() if tls_key else None,
    )
    try:
        return Hansard(
            target,
            api_key=api_key or default_key(target),
            tls=files if tls or tls_ca or tls_cert else False,
            timeout_s=timeout,
            patience_s=timeout,
            # Who types a command hears at once that there is no server.
            first_contact_s=0,
        )
    except ValueError as error:
        raise Mistake(str(error)) from None


def describe(error: HansardError) -> str:
    """Return what the failed call tells, in one line."""
    words = str(error)
    if isinstance(error, Unreachable):
        words = f"{error.message} (`hansard serve` starts one)"
    elif isinstance(error, DeadlineExceeded):
        words = f"{error.address or 'the server'} did not answer in time (--timeout)"
    return one_line(words, _LINE_MAX_CHARACTERS)


def _fail(err: Console, words: str) -> NoReturn:
    err.print(f"hansard: {one_line(words)}", soft_wrap=True)
    raise typer.Exit(EXIT_FAILED)
