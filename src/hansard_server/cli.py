"""The command `hansard`.

Exit codes: 0 all went well; 1 something failed that nobody foresaw; 2 the settings can't be used;
3 something outside them keeps the server from starting; 128 + signal: a second signal cut it short.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
    http_listen: Annotated[
        str | None, typer.Option(help="Where HTTP is served, or `off`.", metavar="HOST:PORT")
    ] = None,
    store: Store = None,
    artifacts: Annotated[
        str | None,
        typer.Option(help="Where bytes of artifacts are kept: a folder, s3://…", metavar="DIR|URL"),
    ] = None,
    data_dir: DataDir = None,
    insecure: Annotated[
        bool | None,
        typer.Option("--insecure", help="No authentication: everybody may do everything."),
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
    workers: Annotated[
        int | None, typer.Option(help="Processes that share the port (PostgreSQL only).")
    ] = None,
    config: Config = None,
    more: More = None,
) -> None:
    """Serve sessions over gRPC until SIGTERM or SIGINT; a second signal cuts that short."""
    flags = {
        "listen": listen,
        "http_listen": http_listen,
        "store": store,
        "artifacts": artifacts,
        "data_dir": data_dir,
        "insecure": insecure,
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
        "tls_client_ca": tls_client_ca,
        "workers": workers,
    }
    # It would walk again and again over what is imported; it begins when calls are taken.
    gc.disable()
    with _mistakes_in_one_line():
        settings = _settings(flags, config, more)
        if settings.workers > 1:
            # It only looks after those that serve, and needs none of what they do.
            gc.enable()
            from hansard_server import supervisor  # noqa: PLC0415

            raise typer.Exit(supervisor.supervise(settings))
        from hansard_server import serving  # noqa: PLC0415

        serving.serve(settings)


@main.command(hidden=True)
def worker() -> None:
    """Serve as one of several; only `serve --workers` starts this, with settings on a pipe."""
    gc.disable()
    with _mistakes_in_one_line():
        from hansard_server import serving  # noqa: PLC0415

        serving.serve_as_worker(_settings(json.loads(sys.stdin.buffer.readline()), None, None))


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
def gateway(  # noqa: PLR0913 - each is a flag
    *,
    target: Annotated[
        str,
        typer.Option(help="The server behind it.", envvar="HANSARD_TARGET", metavar="HOST:PORT"),
    ] = "127.0.0.1:50051",
    listen: Annotated[
        str, typer.Option(help="Where HTTP is served.", metavar="HOST:PORT")
    ] = "127.0.0.1:8080",
    target_tls: Annotated[
        bool, typer.Option("--target-tls", help="Reach the server over TLS.")
    ] = False,
    target_ca: Annotated[
        Path | None, typer.Option(help="Authorities of the server's certificate.", metavar="PEM")
    ] = None,
    target_certificate: Annotated[
        Path | None, typer.Option(help="A certificate to show the server.", metavar="PEM")
    ] = None,
    target_key: Annotated[
        Path | None, typer.Option(help="That certificate's private key.", metavar="PEM")
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="Serve HTTPS, with this certificate.", metavar="PEM")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="The certificate's private key.", metavar="PEM")
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="A web origin whose pages may call; may be repeated.", metavar="ORIGIN"),
    ] = None,
    drain_deadline: Annotated[
        float, typer.Option(help="A stopping gateway is gone after this time.", min=0.1)
    ] = 10.0,
) -> None:
    """Serve the HTTP API in front of a server, until SIGTERM or SIGINT."""
    with _mistakes_in_one_line():
        from hansard_gateway import command  # noqa: PLC0415
        from hansard_gateway.settings import Options  # noqa: PLC0415
        from hansard_server.config import ConfigurationMistake, split_listen  # noqa: PLC0415
        from hansard_server.stores import CannotStart  # noqa: PLC0415

        if (target_certificate is None) != (target_key is None):
            raise ConfigurationMistake("--target-certificate and --target-key go together")
        if (tls_certificate is None) != (tls_key is None):
            raise ConfigurationMistake("--tls-certificate and --tls-key go together")
        try:
            host, port = split_listen(listen)
        except ValueError as error:
            raise ConfigurationMistake(f"--listen: {error}") from None
        tls = command.Tls(ca=target_ca, certificate=target_certificate, key=target_key)
        try:
            command.serve(
                target,
                host,
                port,
                Options(cors_origins=tuple(cors_origin or ()), drain_deadline_s=drain_deadline),
                tls=tls if target_tls or target_ca or target_certificate else None,
                certificate=(str(tls_certificate), str(tls_key)) if tls_certificate else None,
                ready=f"Serving HTTP at {listen.rpartition(':')[0]}:{{port}} for {target}.",
            )
        except OSError as error:
            raise CannotStart(f"{error.filename or listen}: {error.strerror}") from None


@main.command()
def demo() -> None:
    """Serve from ./hansard-data, hold a first conversation, and go on serving until Ctrl-C."""
    with _mistakes_in_one_line():
        from hansard_server import serving  # noqa: PLC0415

        serving.serve_demo(_settings({"log_level": "warning"}, None, None))


tenants = typer.Typer(
    help="Tenants, whose data are apart. For a SQLite database stop its server first.",
    no_args_is_help=True,
)
main.add_typer(tenants, name="tenants")
TenantName = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's name.")]


@tenants.command("create")
def create_tenant(
    tenant: TenantName,
    *,
    store: Store = None,
    data_dir: DataDir = None,
    config: Config = None,
    more: More = None,
) -> None:
    """Make a tenant, and print its administrator's key, this once."""
    with _mistakes_in_one_line():
        from hansard_server import offline  # noqa: PLC0415

        settings = _settings({"store": store, "data_dir": data_dir}, config, more)
        typer.echo(offline.make_tenant(settings, tenant))


@tenants.command("key")
def create_administrator_key(
    tenant: TenantName,
    *,
    store: Store = None,
    data_dir: DataDir = None,
    config: Config = None,
    more: More = None,
) -> None:
    """Print a new administrator's key of a tenant, for when the others are lost."""
    with _mistakes_in_one_line():
        from hansard_server import offline  # noqa: PLC0415

        settings = _settings({"store": store, "data_dir": data_dir}, config, more)
        typer.echo(offline.make_administrator_key(settings, tenant))


# Who serves waits for no client: its commands would take a sixth of the time of the start.
if sys.argv[1:2] not in (["serve"], ["worker"]):
    from hansard_client import commands

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
