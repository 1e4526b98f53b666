"""The contract as its descriptors tell it: every RPC with the HTTP bindings that it names.

A new RPC with a `google.api.http` option is served and documented without a line here.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

import hansard.v1

_VARIABLE = re.compile(r"\{([a-z0-9_.]+)\}")


@dataclass(frozen=True, slots=True)
class Rpc:
    """One RPC of the contract.

    Attributes:
        path: as gRPC names it, `/package.Service/Method`.
        service: the service's name without its package.
        name: the method's name.
        request: the class of its requests.
        response: the class of its responses.
        client_streaming: whether it takes a stream.
        server_streaming: whether it answers a stream.
        reads: whether it has no side effect.
    """

    path: str
    service: str
    name: str
    request: type[Message]
    response: type[Message]
    client_streaming: bool
    server_streaming: bool
    reads: bool


@dataclass(frozen=True, slots=True)
class Binding:
    """One way to call an RPC over HTTP: method, path template and what the body is.

    Attributes:
        method: of HTTP, upper case.
        template: `/v2/agents/{agent_key}`; a variable is a path of fields in the request.
        body: "" for none, "*" for the whole request, else the field that the body is.
        rpc: what is called.
    """

    method: str
    template: str
    body: str
    rpc: Rpc

    @property
    def variables(self) -> list[str]:
        """The fields of the request that the path names, in order."""
        return _VARIABLE.findall(self.template)

    @property
    def shape(self) -> str:
        """The template without the names of its variables: equal for all that stands there."""
        return _VARIABLE.sub("{}", self.template)


@cache
def bindings() -> tuple[Binding, ...]:
    """Return every HTTP binding of the contract."""
    return tuple(binding for rpc, options in _rpcs() for binding in _bindings_of(rpc, options))


@cache
def rpcs() -> tuple[Rpc, ...]:
    """Return every RPC of the contract, also those without a binding."""
    return tuple(rpc for rpc, _ in _rpcs())


def _rpcs() -> Iterator[tuple[Rpc, MethodOptions]]:
    for module in sorted(pkgutil.iter_modules(hansard.v1.__path__), key=lambda found: found.name):
        if not module.name.endswith("_service_pb2"):
            continue
        file: Any = importlib.import_module(f"{hansard.v1.__name__}.{module.name}").DESCRIPTOR
        for service in file.services_by_name.values():
            for method in service.methods:
                options = method.GetOptions()
                yield (
                    Rpc(
                        path=f"/{service.full_name}/{method.name}",
                        service=service.name,
                        name=method.name,
                        request=GetMessageClass(method.input_type),
                        response=GetMessageClass(method.output_type),
                        client_streaming=method.client_streaming,
                        server_streaming=method.server_streaming,
                        reads=options.idempotency_level == MethodOptions.NO_SIDE_EFFECTS,
                    ),
                    options,
                )


def _bindings_of(rpc: Rpc, options: MethodOptions) -> Iterator[Binding]:
    http: Any = annotations_pb2.http
    if not options.HasExtension(http):
        return
    rule: http_pb2.HttpRule = options.Extensions[http]
    for each in (rule, *rule.additional_bindings):
        yield _binding(rpc, each)


def _binding(rpc: Rpc, rule: http_pb2.HttpRule) -> Binding:
    pattern = rule.WhichOneof("pattern")
    if pattern is None or pattern == "custom":
        raise ValueError(f"{rpc.path}: a binding names one of get, put, post, delete, patch")
    return Binding(pattern.upper(), getattr(rule, pattern), rule.body, rpc)
