"""docs/clients: a page, followed to the letter in an empty folder, leads to a streamed answer."""

from __future__ import annotations

import re
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format

from hansard.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
)
from tests.polyglot.languages import BUILDERS, IMAGE, LANGUAGES, SOURCES
from tests.polyglot.service import Service
from tests.support.builds import ROOT, run, tool

PAGES = ROOT / "docs" / "clients"
# A file ends its introduction with the file's name; what is run has no name.
BLOCK = re.compile(r"(?:`([\w./]+)`:\n\n)?```(\w+)\n(.*?)```", re.DOTALL)
ADDRESS = "127.0.0.1:50051"
VERSION = re.compile(r"\d+\.\d+\.\d+")
PINS = {
    "python": ROOT / "pyproject.toml",
    "go": SOURCES / "go" / "go.mod",
    "typescript": SOURCES / "typescript" / "package.json",
    "java": SOURCES / "java" / "pom.xml",
}
ANSWER = "Unopened goods may be returned within 30 days — 中, 🙂."
AGENT = {
    "key": "support",
    "name": "Support",
    "model": {
        "name": "hansard/scripted",
        "parameters": {"script": [{"agent_output": {"content": ANSWER, "delta_count": 9}}]},
    },
}


def prepare(service: Service) -> None:
    """Create what the README's first steps do."""
    metadata = [("x-api-key", service.environment["HANSARD_API_KEY"])]
    with grpc.insecure_channel(service.address) as channel:
        agent = json_format.ParseDict(AGENT, agent_service_pb2.CreateAgentRequest())
        agent_service_pb2_grpc.AgentServiceStub(channel).CreateAgent(agent, metadata=metadata)
        session = session_service_pb2.CreateSessionRequest(
            agent_key="support", key="order-12345", name="Order 12345"
        )
        sessions = session_service_pb2_grpc.SessionServiceStub(channel)
        sessions.CreateSession(session, metadata=metadata)


def read(language: str) -> str:
    return (PAGES / f"{language}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_page_leads_to_an_answer(language: str, tmp_path: Path) -> None:
    for name in BUILDERS[language].tools:
        tool(name)
    text = read(language)
    blocks = BLOCK.findall(text)
    assert len(blocks) == text.count("```") / 2
    folder = tmp_path / "empty"
    data = folder / "hansard-data"
    with Service(f"sqlite:///{tmp_path}/hansard.db", data) as service:
        prepare(service)
        (folder / IMAGE.name).write_bytes(IMAGE.read_bytes())
        out = ""
        for name, kind, content in blocks:
            code = content.replace(ADDRESS, service.address)
            if name:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(code, encoding="utf-8")
            else:
                assert kind == "sh"
                # Nothing of Hansard's own package, and no project above, has a part in it.
                environment = {"PYTHONPATH": "", "GOWORK": "off"}
                shell = ("bash", "-e", "-c", code)
                out += run(*shell, folder=folder, fetches=True, environment=environment)
    assert out.endswith(ANSWER)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_page_names_the_versions_that_are_tested(language: str) -> None:
    named = set(VERSION.findall(read(language).replace(ADDRESS, "")))
    assert named
    assert named <= set(VERSION.findall(PINS[language].read_text(encoding="utf-8")))


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_a_page_points_at_is_there(language: str) -> None:
    text = read(language)
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (PAGES / link).exists(), link
    rows = re.findall(r"^\| .* \| `([\w./]+)`((?:, `\w+`)*) \|$", text, re.MULTILINE)
    assert len(rows) >= 6
    for name, places in rows:
        [file] = (SOURCES / language).rglob(Path(name).name)
        for place in re.findall(r"\w+", places):
            assert place in file.read_text(encoding="utf-8"), (name, place)
