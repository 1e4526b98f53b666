"""A model of a provider, as the agent loop calls it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import cast

import httpx2
from pydantic_ai.direct import model_request_stream
from pydantic_ai.messages import InstructionPart, ModelMessage, ToolCallPart
from pydantic_ai.models import ModelRequestParameters, StreamedResponse
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.settings import ModelSettings as LibrarySettings
from pydantic_ai.tools import ToolDefinition

from hansard_server.agents.api import Json, ModelRequest, Part
from hansard_server.agents.json_text import dump_json
from hansard_server.agents.models.parameters import request_settings
from hansard_server.agents.models.providers.clients import ProviderClient, open_client
from hansard_server.agents.models.providers.failures import Failures
from hansard_server.agents.models.providers.images import load_images
from hansard_server.agents.models.providers.messages import to_messages
from hansard_server.agents.models.providers.rules import names_by_wire, wire_name
from hansard_server.agents.models.providers.streams import StreamReader
from hansard_server.agents.models.settings import ModelSettings
from hansard_server.domain.errors import DomainError

_RESPONSE_ID_BYTES = 6
_SCHEMA_TOLD = (
    "Answer with one JSON object and nothing else: no words around it, no code fence. It must be "
    "valid under this JSON schema, called {name}:\n{schema}"
)


class ProviderCaller:
    """Calls one model of a provider. The client is made by the first call, and kept."""

    def __init__(
        self,
        name: str,
        model_name: str,
        settings: ModelSettings,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Call the provider's model `model_name`, which agents know as `name`; `transport` takes
        the requests instead of the network.
        """
        self._model_name = model_name
        self._settings = settings
        self._key = settings.find_key()
        self._transport = transport
        headers = [header.get_secret_value() for header in settings.headers.values()]
        self._failures = Failures(name, (self._key, *headers))
        self._client: ProviderClient | None = None
        self._opening = asyncio.Lock()

    async def respond(self, request: ModelRequest) -> AsyncGenerator[Part]:
        """Yield the answer's parts as the provider sends them; see the Protocol Model.

        Left in the middle, it has closed its connection when it returns.
        """
        try:
            client = await self._open()
            async with aclosing(self._stream(client, request)) as parts:
                async for part in parts:
                    yield part
        except DomainError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the turn must hear it so
            raise self._failures.of(error) from None

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.http.aclose()

    async def _open(self) -> ProviderClient:
        async with self._opening:
            if self._client is None:
                self._client = await open_client(
                    self._settings, self._model_name, self._key, self._transport
                )
            return self._client

    async def _stream(self, client: ProviderClient, request: ModelRequest) -> AsyncGenerator[Part]:
        images = await load_images(request.history, request.files, client.rules)
        messages = to_messages(request.history, client.rules, images)
        async with self._open_stream(client, request, messages) as stream:
            reader = StreamReader(
                stream,
                provider=client.rules.provider,
                response_id=secrets.token_hex(_RESPONSE_ID_BYTES),
                names=names_by_wire(tool.name for tool in request.tools),
            )
            try:
                async with aclosing(reader.parts()) as parts:
                    async for part in parts:
                        yield part
            except Exception:
                # What broke off has its price too.
                if (usage := reader.usage()) is not None:
                    yield usage
                raise
            if (usage := reader.usage()) is not None:
                yield usage

    def _open_stream(
        self, client: ProviderClient, request: ModelRequest, messages: list[ModelMessage]
    ) -> AbstractAsyncContextManager[StreamedResponse]:
        parameters: Mapping[str, Json] = {**self._settings.parameters, **request.parameters}
        settings = request_settings(self._settings.provider, parameters)
        # Nothing but the agent's own instructions is put before a conversation.
        settings["framing_announcement"] = "never"
        return model_request_stream(
            client.model,
            messages,
            model_settings=cast("LibrarySettings", settings),
            model_request_parameters=_request_parameters(request, messages, client),
            instrument=False,
        )


def _request_parameters(
    request: ModelRequest, messages: Sequence[ModelMessage], client: ProviderClient
) -> ModelRequestParameters:
    tools = [
        ToolDefinition(
            name=wire_name(tool.name),
            description=tool.description,
            parameters_json_schema=dict(tool.input_schema),
        )
        for tool in request.tools
    ] or _former_tools(messages)
    native = client.native_schema and (client.schema_beside_tools or not tools)
    schema = request.output_schema
    # One instruction: the templates of many open models take no more.
    instructions = list(request.instructions)
    output: OutputObjectDefinition | None = None
    if schema is not None and native:
        output = OutputObjectDefinition(json_schema=dict(schema.json_schema), name=schema.name)
    elif schema is not None:
        told = _SCHEMA_TOLD.format(name=schema.name, schema=dump_json(schema.json_schema))
        instructions.append(told)
    text = "\n\n".join(instruction for instruction in instructions if instruction.strip())
    return ModelRequestParameters(
        function_tools=tools,
        instruction_parts=[InstructionPart(content=text)] if text else [],
        output_mode="text" if output is None else "native",
        output_object=output,
    )


def _former_tools(messages: Sequence[ModelMessage]) -> list[ToolDefinition]:
    """Return the tools that were called, for an agent that has none now: providers refuse calls
    when there is no tool.
    """
    names = {part.tool_name for m in messages for part in m.parts if isinstance(part, ToolCallPart)}
    gone = "This tool is gone; it can't be called any more."
    return [ToolDefinition(name=name, description=gone) for name in sorted(names)]
