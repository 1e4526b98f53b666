"""Run by the Python of a venv that has openai-agents: its sessions in Hansard.

Arguments: the target. What fails raises.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator
from typing import Any

from agents import Agent, Model, ModelResponse, RunConfig, Runner, SQLiteSession, Usage
from agents.memory.session import Session
from openai.types.responses import ResponseOutputMessage, ResponseOutputText

from hansard_client import AsyncHansard
from hansard_client.openai_agents import HansardSession

NAMES = ["a/b", "a b", "\N{SNOWMAN}\N{GRINNING FACE}", "x" * 300, "a\nb", "..", "a\0b", "\ud800"]


class Answering(Model):
    """A model that says how many items it was given."""

    async def get_response(self, *given: Any, **named: Any) -> ModelResponse:
        items = named["input"] if "input" in named else given[1]
        count = 1 if isinstance(items, str) else len(items)
        text = ResponseOutputText(
            text=f"I was given {count} items.", type="output_text", annotations=[]
        )
        message = ResponseOutputMessage(
            id=f"msg_{uuid.uuid4().hex}",
            role="assistant",
            type="message",
            status="completed",
            content=[text],
        )
        return ModelResponse(output=[message], usage=Usage(), response_id=None)

    def stream_response(self, *_given: Any, **_named: Any) -> AsyncIterator[Any]:
        raise NotImplementedError


def item(text: str) -> Any:
    return {"role": "user", "content": text}


async def a_runner_holds_a_conversation(client: AsyncHansard) -> None:
    agent = Agent(name="clerk", model=Answering())
    config = RunConfig(tracing_disabled=True)
    session = HansardSession("talk", client=client)
    assert isinstance(session, Session)
    first = await Runner.run(agent, "Hello?", session=session, run_config=config)
    second = await Runner.run(agent, "Still there?", session=session, run_config=config)
    assert first.final_output == "I was given 1 items."
    assert second.final_output == "I was given 3 items."
    again = HansardSession("talk", client=client)
    assert len(await again.get_items()) == 4


async def it_behaves_as_their_own(client: AsyncHansard) -> None:
    """The same steps on the library's own session, and the same outcome."""

    async def steps(of: Any) -> list[Any]:
        seen: list[Any] = [await of.get_items(), await of.pop_item()]
        await of.add_items([])
        await of.add_items([item(f"{n}") for n in range(5)])
        seen += [await of.get_items(limit) for limit in (None, 0, 1, 3, 99)]
        seen.append(await of.pop_item())
        await of.add_items([item("after"), {"n": 2**70, "f": 0.1, "z": None, "t": "ä"}])
        seen.append(await of.get_items())
        seen.append(await of.get_items(2))
        seen += [await of.pop_item() for _ in range(3)]
        seen.append(await of.get_items())
        await of.clear_session()
        seen.append(await of.get_items())
        await of.clear_session()
        await of.add_items([item("new")])
        seen.append(await of.get_items())
        return seen

    expected = await steps(SQLiteSession("own"))
    made = await steps(HansardSession(f"own {uuid.uuid4()}", client=client))
    for number, (theirs, ours) in enumerate(zip(expected, made, strict=True)):
        assert theirs == ours, (number, theirs, ours)


async def names_may_be_anything(client: AsyncHansard) -> None:
    for name in NAMES:
        session = HansardSession(name, client=client)
        await session.add_items([item("of this one")])
        assert await session.get_items() == [item("of this one")]


async def owners_of_one_id_are_kept_apart(client: AsyncHansard) -> None:
    one = HansardSession("same", client=client, agent_key="one")
    two = HansardSession("same", client=client, agent_key="two")
    await one.add_items([item("1")])
    assert await two.get_items() == []


async def an_item_is_popped_once(client: AsyncHansard) -> None:
    session = HansardSession("pops", client=client)
    await session.add_items([item(f"{n}") for n in range(16)])
    popped = await asyncio.gather(*(session.pop_item() for _ in range(20)))
    texts = sorted(int(p["content"]) for p in popped if p is not None)
    assert texts == list(range(16)), texts
    assert popped.count(None) == 4


async def many_items_are_one_conversation(client: AsyncHansard) -> None:
    session = HansardSession("many", client=client)
    await session.add_items([item(f"{n}") for n in range(600)])
    assert await session.get_items() == [item(f"{n}") for n in range(600)]
    assert await session.get_items(50) == [item(f"{n}") for n in range(550, 600)]


async def main(target: str) -> None:
    async with AsyncHansard(target) as client:
        for check in (
            a_runner_holds_a_conversation,
            it_behaves_as_their_own,
            names_may_be_anything,
            owners_of_one_id_are_kept_apart,
            an_item_is_popped_once,
            many_items_are_one_conversation,
        ):
            await check(client)
            print("ok", check.__name__, flush=True)


asyncio.run(main(sys.argv[1]))
