"""The commands: resources are made, listed, shown and deleted; what fails says so in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.people.conftest import Done, Hansard
from tests.support.ports import free_port


def assert_fails(done: Done, *words: str) -> None:
    assert done.code == 1
    lines = done.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("hansard: ")
    assert all(word in lines[0] for word in words), done.err


def test_an_agent_is_made_shown_and_deleted(hansard: Hansard) -> None:
    made = hansard.ok("agents", "create", "--name", "Short lived", "--instruction", "Be brief.")
    key = next(word for word in made.out.split() if word.startswith("agt_"))
    shown = json.loads(hansard.ok("agents", "get", key).out)
    assert shown["model"]["name"] == "hansard/extractive"
    assert shown["first_step"]["instructions"][0]["inline"]["template"] == "Be brief."
    assert_fails(hansard("agents", "delete", key), "--yes")
    assert hansard.ok("agents", "delete", key, "--yes").err == f"Deleted: {key}\n"
    assert_fails(hansard("agents", "get", key), "AGENT_NOT_FOUND")


def test_flags_go_before_the_file(hansard: Hansard, tmp_path: Path) -> None:
    file = tmp_path / "agent.json"
    file.write_text(json.dumps({"name": "From the file", "description": "kept", "enabled": False}))
    made = hansard.ok("agents", "create", "--file", str(file), "--name", "From the flag", "--json")
    assert made.objects[0]["name"] == "From the flag"
    assert made.objects[0]["description"] == "kept"
    assert made.objects[0]["enabled"] is False


@pytest.mark.parametrize("text", ["{", "[]", '{"nonsense": 1}', '{"name": 7}'])
def test_a_file_that_can_not_be_used_is_refused(
    hansard: Hansard, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "agent.json"
    file.write_text(text)
    assert_fails(hansard("agents", "create", "--file", str(file)))


def test_lists_go_through_all_pages(hansard: Hansard, agent: str) -> None:
    key = f"{agent}-many"
    hansard.ok("agents", "create", "--key", key, "--name", "Many sessions")
    for number in range(7):
        hansard.ok("sessions", "create", key, "--name", f"Number {number}", "--key", f"s{number}")
    newest_first = [f"s{number}" for number in reversed(range(7))]
    listed = hansard.ok("sessions", "list", key, "--limit", "0", "--json").objects
    assert [session["key"] for session in listed] == newest_first
    part = hansard.ok("sessions", "list", key, "--limit", "3")
    assert [line.split()[0] for line in part.out.splitlines()[2:]] == newest_first[:3]
    assert "--limit" in part.err


def test_json_keeps_the_names_of_the_contract(hansard: Hansard, agent: str, session: str) -> None:
    [shown] = hansard.ok("sessions", "get", agent, session, "--json").objects
    assert shown["agent_key"] == agent
    assert shown["created_at"]
    assert shown["status"] == "SESSION_STATUS_IDLE"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["agents", "get", "nobody"], ["AGENT_NOT_FOUND"]),
        (["agents", "get", "no key"], ["INVALID_REQUEST", "agent_key"]),
        (["sessions", "list", "nobody"], ["AGENT_NOT_FOUND"]),
        (["sessions", "create", "quoter", "--name", ""], ["INVALID_REQUEST", "name"]),
        (["sessions", "create", "quoter", "--name", "x", "--metadata", "7"], ["metadata"]),
        (["sessions", "delete", "quoter", "none", "--yes"], ["SESSION_NOT_FOUND"]),
        (["events", "list", "quoter", "none"], ["SESSION_NOT_FOUND"]),
        (["events", "watch", "quoter", "none"], ["SESSION_NOT_FOUND"]),
        (["artifacts", "get", "quoter", "none", "art_x"], ["SESSION_NOT_FOUND"]),
        (["artifacts", "upload", "quoter", "none", "/no/such/file"], ["/no/such/file"]),
        (["chat", "nobody", "--once", "Hello"], ["AGENT_NOT_FOUND"]),
        (["chat", "quoter", "none", "--once", "Hello"], ["SESSION_NOT_FOUND"]),
        (["chat", "quoter", "--once", " "], ["nothing to send"]),
    ],
)
def test_what_fails_says_why_in_one_line(
    hansard: Hansard, agent: str, arguments: list[str], words: list[str]
) -> None:
    assert_fails(hansard(*arguments), *words)


@pytest.mark.parametrize("arguments", [["agents", "list"], ["chat", "a", "--once", "Hello"]])
def test_where_no_server_is_a_line_says_so(arguments: list[str]) -> None:
    target = f"127.0.0.1:{free_port()}"
    assert_fails(Hansard(target)(*arguments), target, "hansard serve")


def test_nothing_that_a_server_sends_is_obeyed(hansard: Hansard) -> None:
    name = "\x1b[2J\x9b31m\u202egpj\u2028[red]boo[/red] :smile:"
    made = hansard.ok("agents", "create", "--name", name, "--key", "hostile")
    listed = hansard.ok("agents", "list", "--filter", "boo")
    for out in (made.out, listed.out):
        assert "[red]boo[/red] :smile:" in out
        assert "␛[2J" in out
        assert not any(unsafe in out for unsafe in "\x1b\x9b\u202e\u2028")
    as_json = hansard.ok("agents", "get", "hostile", "--json")
    assert not any(unsafe in as_json.out for unsafe in "\x1b\x9b\u202e\u2028")
    assert as_json.objects[0]["name"] == name


def test_events_are_listed_and_watched(hansard: Hansard, agent: str, session: str) -> None:
    hansard.ok("chat", agent, session, "--once", "What is [bold]there[/bold]?\x1b[2J")
    listed = hansard.ok("events", "list", agent, session, "--json").objects
    assert [int(event["sequence"]) for event in listed] == list(range(1, len(listed) + 1))
    assert "input_message" in listed[0]
    table = hansard.ok("events", "list", agent, session, "--type", "input_message").out
    assert "What is [bold]there[/bold]?␛[2J" in table
    newest = hansard.ok(
        "events", "list", agent, session, "--newest-first", "--limit", "1", "--json"
    )
    assert newest.objects == listed[-1:]
    count = str(len(listed))
    watched = hansard.ok("events", "watch", agent, session, "--json", "--limit", count)
    assert watched.objects == listed
    rest = hansard.ok("events", "watch", agent, session, "--after", "1", "--limit", "1").out
    assert rest.split()[0] == "2"


def test_a_session_is_forked(hansard: Hansard, agent: str) -> None:
    key = f"{agent}-forks"
    hansard.ok("agents", "create", "--key", key, "--name", "Forks")
    hansard.ok("sessions", "create", key, "--name", "Source", "--key", "source")
    hansard.ok("chat", key, "source", "--once", "Hello?")
    events = hansard.ok("events", "list", key, "source", "--json").objects
    forked = hansard.ok(
        *("sessions", "create", key, "--name", "Fork", "--from", "source"),
        *("--up-to", events[0]["id"], "--json"),
    ).objects[0]
    assert forked["forked_from"]["event_id"] == events[0]["id"]
    copies = hansard.ok("events", "list", key, forked["key"], "--json").objects
    assert [event["id"] for event in copies] == [events[0]["id"]]
    again = hansard.ok(
        *("sessions", "create", agent, "--name", "Fork", "--from", f"{key}/source", "--json")
    ).objects[0]
    assert int(again["last_sequence"]) == len(events)
    failed = hansard("sessions", "create", key, "--name", "x", "--from", "nowhere")
    assert_fails(failed, "SESSION_NOT_FOUND", "from_session.session_key")
    assert_fails(hansard("sessions", "create", key, "--name", "x", "--up-to", "aev_1"), "--from")


def test_a_corpus_is_filled_and_searched(hansard: Hansard, tmp_path: Path) -> None:
    hansard.ok("corpora", "create", "--key", "handbook", "--name", "Handbook")
    text = tmp_path / "returns & refunds.md"
    text.write_text("# Refunds\n\nWe refund within thirty days.")
    (made,) = hansard.ok(
        "corpora", "index", "handbook", str(text), "--metadata", '{"lang": "en"}', "--json"
    ).objects
    assert made["document_id"] == "returns___refunds.md"
    (passage,) = hansard.ok(
        "corpora", "search", "handbook", "refunds?", "--filter", "doc.lang = 'en'", "--json"
    ).objects
    assert passage["metadata"] == {"filename": "returns & refunds.md", "lang": "en"}
    assert "thirty days" in hansard.ok("corpora", "search", "handbook", "refund").out
    assert hansard.ok("corpora", "list", "--json").objects[0]["document_count"] == "1"
    assert made["document_id"] in hansard.ok("corpora", "documents", "handbook").out
    assert_fails(hansard("corpora", "search", "handbook", "x", "--filter", "doc."), "filter")
    assert_fails(hansard("corpora", "index", "handbook", str(text), "--metadata", "7"), "object")
    hansard.ok("corpora", "remove", "handbook", made["document_id"], "--yes")
    hansard.ok("corpora", "delete", "handbook", "--yes")
    assert_fails(hansard("corpora", "search", "handbook", "x"), "CORPUS_NOT_FOUND")
