"""Every call of the contract has its line in the table of rules, and the line fits its request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from hansard_server.access.rules import RULES, Need

IMAGE = Path(__file__).resolve().parents[2] / "generated" / "hansard" / "hansard.binpb"


def methods() -> Iterator[MethodDescriptor]:
    """Yield the calls of the contract, and those that the server serves beside it."""
    pool = descriptor_pool.DescriptorPool()
    image = FileDescriptorSet.FromString(IMAGE.read_bytes())
    for file in image.file:
        pool.Add(file)
    files: list[FileDescriptor] = [
        pool.FindFileByName(file.name)
        for file in image.file
        if file.package == "hansard.v1" and file.service
    ]
    served: list[FileDescriptor] = [*files, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR]
    for descriptor in served:
        for service in descriptor.services_by_name.values():
            yield from service.methods


METHODS = {f"/{method.containing_service.full_name}/{method.name}": method for method in methods()}


def agent_fields(message: Descriptor, path: str = "") -> Iterator[str]:
    """Yield the paths of the fields that name an agent, as far as messages don't repeat."""
    for field in message.fields:
        here = f"{path}{field.name}"
        if field.name == "agent_key" or (message.name == "Agent" and field.name == "key"):
            yield here
        inner = field.message_type
        if inner is not None and inner.full_name.startswith("hansard.") and not field.is_repeated:
            yield from agent_fields(inner, f"{here}.")


def test_every_call_has_its_line() -> None:
    assert set(METHODS) == set(RULES)


@pytest.mark.parametrize("name", METHODS)
def test_line_looks_at_every_agent_that_the_request_names(name: str) -> None:
    rule, request = RULES[name], METHODS[name].input_type
    looked_at = {agent.path for agent in rule.agents}
    # What is only shown, or belongs to the agent that is named already.
    shown = {"session.forked_from.agent_key", "session.parent.agent_key"}
    named = set(agent_fields(request)) - shown
    if rule.need is Need.ROLE_ON_AGENT:
        assert looked_at == named
    else:
        assert not looked_at
        assert not named


@pytest.mark.parametrize("name", METHODS)
def test_paths_lead_to_a_text(name: str) -> None:
    for agent in RULES[name].agents:
        message: Descriptor | None = METHODS[name].input_type
        *through, last = agent.path.split(".")
        for step in through:
            assert message is not None
            message = message.fields_by_name[step].message_type
        assert message is not None
        assert message.fields_by_name[last].type == FieldDescriptor.TYPE_STRING


def test_roles_are_those_of_the_table() -> None:
    for rule in RULES.values():
        assert bool(rule.roles) == (rule.need in {Need.ROLE_ON_AGENT, Need.ROLE_ON_ANY})
