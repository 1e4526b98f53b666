"""`hansard keys`, `hansard tenants`, and where commands take their key from."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hansard_client.credentials import default_key
from hansard_server.cli import main
from tests.people.conftest import Done
from tests.support.databases import Databases
from tests.support.server import serve_process


class Commands:
    """The command, at one server, in an environment of its own."""

    def __init__(self, target: str, data_dir: Path) -> None:
        self._environment = {"HANSARD_TARGET": target, "HANSARD_DATA_DIR": str(data_dir)}

    def __call__(self, *arguments: str, **environment: str) -> Done:
        result = CliRunner().invoke(
            main, arguments, env={**self._environment, "COLUMNS": "140", **environment}
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Give the command at a server that asks for keys."""
    folder = tmp_path_factory.mktemp("keyed")
    arguments = ("--listen", "127.0.0.1:0", "--data-dir", str(folder))
    with serve_process(*arguments, insecure=False) as process:
        commands = Commands(process.wait_for("serving")["address"], folder)
        made = commands("agents", "create", "--key", "a", "--name", "A")
        assert made.code == 0, made
        yield commands
        process.send(signal.SIGTERM)
        process.wait()


def test_key_is_created_used_listed_and_revoked(keyed: Commands) -> None:
    made = keyed("keys", "create", "The shop", "--role", "agent_user:a", "--expires-in-days", "2")
    assert made.code == 0, made
    secret = made.out.strip()
    assert "shown this once" in made.err
    assert keyed("agents", "list", HANSARD_API_KEY=secret).code == 0
    refused = keyed("agents", "delete", "a", "--yes", HANSARD_API_KEY=secret)
    assert (refused.code, "FORBIDDEN" in refused.err) == (1, True)
    [key] = [
        key
        for key in map(json.loads, keyed("keys", "list", "--json").out.splitlines())
        if key["name"] == "The shop"
    ]
    assert key["roles"] == [{"role": "ROLE_AGENT_USER", "agent_key": "a"}]
    assert "secret" not in key
    assert secret not in keyed("keys", "list").out
    assert keyed("keys", "revoke", key["id"], "--yes").code == 0
    refused = keyed("agents", "list", HANSARD_API_KEY=secret)
    assert (refused.code, "UNAUTHORIZED" in refused.err) == (1, True)
    assert key["id"] not in keyed("keys", "list").out
    assert key["id"] in keyed("keys", "list", "--all").out


def test_key_as_json_has_its_secret(keyed: Commands) -> None:
    made = keyed("keys", "create", "Bot", "--role", "administrator", "--json")
    [key] = made.objects
    assert key["secret"].startswith("hsk_")


@pytest.mark.parametrize("role", ["user", "agent_user", "agent_user:", "administrator:a", ""])
def test_role_that_makes_no_sense_is_said(keyed: Commands, role: str) -> None:
    refused = keyed("keys", "create", "Bot", "--role", role)
    assert refused.code == 1
    assert refused.err.startswith(f"hansard: --role {role}".rstrip())


def test_without_a_key_one_line_says_so(keyed: Commands, tmp_path: Path) -> None:
    refused = keyed("agents", "list", HANSARD_DATA_DIR=str(tmp_path))
    assert refused.code == 1
    assert len(refused.err.splitlines()) == 1
    assert "UNAUTHORIZED" in refused.err


def test_key_in_the_folder_goes_to_this_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "admin.key").write_text("the key\n")
    monkeypatch.setenv("HANSARD_DATA_DIR", str(tmp_path))
    for here in ("127.0.0.1:1", "localhost:1", "[::1]:1", "127.0.0.1:1, localhost:2"):
        assert default_key(here) == "the key"
    for elsewhere in ("example.org:1", "10.0.0.1:1", "127.0.0.1:1,example.org:1", "0.0.0.0:1"):
        assert default_key(elsewhere) == ""
    monkeypatch.delenv("HANSARD_DATA_DIR")
    monkeypatch.chdir(tmp_path)
    assert default_key("127.0.0.1:1") == ""
    (tmp_path / "hansard-data").mkdir()
    (tmp_path / "admin.key").rename(tmp_path / "hansard-data" / "admin.key")
    assert default_key("127.0.0.1:1") == "the key"


def test_tenants_are_made_while_no_server_has_the_folder(tmp_path: Path) -> None:
    data = tmp_path / "data"
    commands = Commands("", data)
    made = commands("tenants", "create", "acme")
    assert (made.code, made.out[:4]) == (0, "hsk_")
    again = commands("tenants", "create", "acme")
    assert (again.code, again.err) == (2, "hansard: there is a tenant acme already\n")
    assert commands("tenants", "create", "a b").code == 2
    assert commands("tenants", "key", "nobody").err == "hansard: there is no tenant nobody\n"
    second = commands("tenants", "key", "acme")
    assert second.code == 0
    arguments = ("--listen", "127.0.0.1:0", "--data-dir", str(data))
    with serve_process(*arguments, insecure=False) as process:
        at = Commands(process.wait_for("serving")["address"], data)
        for key in (made.out, second.out):
            assert at("agents", "list", HANSARD_API_KEY=key.strip()).code == 0
        busy = commands("tenants", "create", "other")
        assert (busy.code, "another hansard" in busy.err) == (3, True)


def test_tenants_are_made_beside_servers_on_postgresql(
    databases: Databases, tmp_path: Path
) -> None:
    url = databases.migrated("postgresql")
    arguments = ("--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "1"), "--store", url)
    with serve_process(*arguments, insecure=False) as process:
        at = Commands(process.wait_for("serving")["address"], tmp_path / "2")
        made = at("tenants", "create", "acme", "--store", url)
        assert made.code == 0, made
        key = made.out.strip()
        assert at("agents", "create", "--name", "A", "--key", "a", HANSARD_API_KEY=key).code == 0
        theirs = at("agents", "get", "a", HANSARD_DATA_DIR=str(tmp_path / "1"))
        assert "AGENT_NOT_FOUND" in theirs.err
        process.send(signal.SIGTERM)
        process.wait()
    databases.drop(url)
