"""What turns run under: agents that are made of their rows once."""

from __future__ import annotations

from dataclasses import replace

from hansard.v1 import agent_pb2
from hansard_server.domain.records import AgentRecord
from hansard_server.turns.context import LoadedAgents, load_agent
from tests.support.agents import make_agent


def record(uid: str = "a", **parameters: object) -> AgentRecord:
    agent = make_agent(parameters=parameters)
    return AgentRecord(
        tenant="t",
        uid=uid,
        key=f"key-{uid}",
        name="Agent",
        description="",
        configuration=agent_pb2.Agent(model=agent.model).SerializeToString(),
        metadata=b"",
        enabled=True,
        etag="1",
        created_at_us=1,
        updated_at_us=1,
    )


def test_equal_rows_are_one_agent_and_any_change_makes_another() -> None:
    agents = LoadedAgents()
    first = agents.get(record(script=[{"pause_ms": 1}]))
    assert agents.get(record(script=[{"pause_ms": 1}])) is first
    assert first.parameters == {"script": [{"pause_ms": 1}]}
    for changed in (
        record(script=[{"pause_ms": 2}]),
        replace(record(), name="Other"),
        replace(record(), metadata=b"\x0a\x05\x0a\x01x\x12\x00"),
    ):
        assert agents.get(changed) == load_agent(changed)
        assert len(agents) == 1


def test_only_so_many_are_kept() -> None:
    agents = LoadedAgents(max_agents=3)
    made = [agents.get(record(str(number))) for number in range(5)]
    assert len(agents) == 3
    assert agents.get(record("4")) is made[4]
    assert agents.get(record("0")) is not made[0]


def test_only_so_many_bytes_are_kept() -> None:
    size = len(record("0", x="y" * 1_000).configuration)
    agents = LoadedAgents(max_bytes=2 * size)
    for number in range(5):
        agents.get(record(str(number), x="y" * 1_000))
    assert len(agents) == 2
    large = record("9", x="y" * 3_000)
    assert agents.get(large) == load_agent(large)
    assert len(agents) == 0
    agents.get(record("0", x="y" * 1_000))
    assert len(agents) == 1
