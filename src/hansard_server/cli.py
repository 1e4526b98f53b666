"""The command `hansard`.

Exit codes: 0 all went well; 1 something failed that nobody foresaw; 2 the settings can't be used;
3 something outside them keeps the server from starting; 128 + signal: a second signal cut it short.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hansard_client import commands
from hansard_server import __version__

# The server is imported by the commands that are one: it takes seconds, and a client needs none of
# it.
if TYPE_CHECKING:
    from hansard_server.config import Settings

CONFIG_VARIABLE = "HANSARD_CONFIG"
EXIT_MISTAKE = 2
EXIT_CANNOT_START = 3

main = typer.Typer(
    name="hansard",
    help="Keeps the record of agent sessions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[
    Path | None, typer.Option(envvar=CONFIG_VARIABLE, help="TOML file with settings.")
]
Store = Annotated[
    str | None, typer.Option(help="Database: sqlite:///<path> or postgresql://…", metavar="URL")
]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder of all that has no place of its own.", metavar="DIR")
]
More = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other setting; may be repeated.", metavar="NAME=VALUE"),
]


def _show_version(*, wanted: bool) -> None:
    if wanted:
        typer.echo(f"hansard {__version__}")
        raise typer.Exit


@main.callback()
def _all_commands(
    *,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Take what stands before the command."""


@main.command()
def serve(  # noqa: PLR0913 - each is a flag
    *,
    listen: Annotated[
        str | None, typer.Option(help="Where calls are taken.", metavar="HOST:PORT")
    ] = None,
    store: Store = None,
    artifacts: Annotated[
        str | None, typer.Option(help="Where bytes of artifacts are kept.", metavar="DIR|URL")
    ] = None,
    data_dir: DataDir = None,
    insecure: Annotated[
        bool | None,
        typer.Option("--insecure", help="Listen beyond this machine without authentication."),
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="Take calls over TLS, with this certificate.", metavar="PEM")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="The certificate's private key.", metavar="PEM")
    ] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Ask clients for certificates of these.", metavar="PEM")
    ] = None,
    config: Config = None,
    more: More = None,
) -> None:
    """Serve sessions over gRPC until SIGTERM or SIGINT; a second signal cuts that short."""
    flags = {
        "listen": listen,
        "store": store,
        "artifacts": artifacts,
        "data_dir": data_dir,
        "insecure": insecure,
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
        "tls_client_ca": tls_client_ca,
    }
    with _mistakes_in_one_line():
        from hansard_server import serving  # noqa: PLC0415

        serving.serve(_settings(flags, config, more))


@main.command()
def migrate(
    *,
    store: Store = None,
    data_dir: DataDir = None,
    config: Config = None,
    more: More = None,
) -> None:
    """Bring the database to the schema of this version."""
    with _mistakes_in_one_line():
        from hansard_server import serving  # noqa: PLC0415

        serving.migrate(_settings({"store": store, "data_dir": data_dir}, config, more))
    typer.echo("The database has the schema of this version.")


@main.command()
def demo() -> None:
    """Serve from ./hansard-data, hold a first conversation, and go on serving until Ctrl-C."""
    with _mistakes_in_one_line():
        from hansard_server import serving  # noqa: PLC0415

        serving.serve_demo(_settings({"log_level": "warning"}, None, None))


commands.add_to(main)


@contextmanager
def _mistakes_in_one_line() -> Iterator[None]:
    from hansard_server.config import ConfigurationMistake  # noqa: PLC0415
    from hansard_server.stores import CannotStart  # noqa: PLC0415

    try:
        yield
    except (ConfigurationMistake, CannotStart) as error:
        sys.stderr.write(f"hansard: {error}\n")
        code = EXIT_MISTAKE if isinstance(error, ConfigurationMistake) else EXIT_CANNOT_START
        raise typer.Exit(code) from None


def _settings(
    flags: Mapping[str, object | None], config: Path | None, more: list[str] | None
) -> Settings:
    from hansard_server.config import ConfigurationMistake, load  # noqa: PLC0415

    given = {name: value for name, value in flags.items() if value is not None}
    for text in more or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigurationMistake(f"--set {text}: must be NAME=VALUE")
        given[name.strip()] = value
    return load(given, config)
