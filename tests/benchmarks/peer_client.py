"""Run by the Python of a venv that has google-adk and langgraph: what they do in their own process.

Arguments: what (`adk-append`, `adk-turn`, `langgraph`), a database URL, how long the session is.
Says a line when it has filled it; then, for every number of seconds on standard input, answers
with a line of counts, as load_client.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

SESSIONS = 16
NAMES = {"app_name": "bench", "user_id": "u"}

Work = Callable[[int], Awaitable[None]]


async def adk(stack: AsyncExitStack, url: str, length: int, *, whole_turn: bool) -> list[Work]:
    """Return what 16 sessions do at a time: append an event; or one: load the session, append 3."""
    from google.adk.events.event import Event  # noqa: PLC0415
    from google.adk.sessions import DatabaseSessionService  # noqa: PLC0415
    from google.genai import types  # noqa: PLC0415

    service = await stack.enter_async_context(DatabaseSessionService(url))

    def event() -> Event:
        part = types.Part(text="x" * 500)
        content = types.Content(role="user", parts=[part])
        return Event(author="user", invocation_id="i", content=content)

    sessions = [
        await service.create_session(**NAMES, session_id=f"s-{number}")
        for number in range(1 if whole_turn else SESSIONS)
    ]
    for _ in range(length):
        await service.append_event(sessions[0], event())
        sessions[0].events.clear()

    async def append(number: int) -> None:
        await service.append_event(sessions[number], event())
        sessions[number].events.clear()

    async def turn(_: int) -> None:
        session = await service.get_session(**NAMES, session_id="s-0")
        assert session is not None
        assert len(session.events) >= length
        for _number in range(3):
            await service.append_event(session, event())

    return [turn] if whole_turn else [append] * SESSIONS


async def langgraph(stack: AsyncExitStack, url: str, length: int) -> list[Work]:
    """Return a turn of a graph that answers a message, in a thread of so many messages."""
    from langchain_core.messages import AIMessage, HumanMessage  # noqa: PLC0415
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver  # noqa: PLC0415
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver  # noqa: PLC0415
    from langgraph.graph import END, START, MessagesState, StateGraph  # noqa: PLC0415

    kind: Any = AsyncPostgresSaver if url.startswith("postgresql") else AsyncSqliteSaver
    saver = await stack.enter_async_context(kind.from_conn_string(url))
    await saver.setup()

    def answer(_: Any) -> dict[str, Any]:
        return {"messages": [AIMessage("y" * 500)]}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    graph.add_edge("answer", END)
    compiled = graph.compile(checkpointer=saver)
    config: Any = {"configurable": {"thread_id": "t"}}
    await compiled.aupdate_state(
        config, {"messages": [HumanMessage("x" * 500) for _ in range(length)]}
    )

    async def turn(_: int) -> None:
        await compiled.ainvoke({"messages": [HumanMessage("Where is my parcel?")]}, config)

    return [turn]


async def main(what: str, url: str, length: int) -> None:
    """Run whenever told to, until the input ends."""
    loop = asyncio.get_running_loop()
    scheme, _, place = url.partition("///")
    if scheme.startswith("sqlite"):
        with sqlite3.connect(place) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        connection.close()
    async with AsyncExitStack() as stack:
        if what == "langgraph":
            works = await langgraph(stack, place if scheme.startswith("sqlite") else url, length)
        else:
            works = await adk(stack, url, length, whole_turn=what == "adk-turn")
        _tell({"filled": length})
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            _tell(await _run(works, float(line.split()[0])))


async def _run(works: list[Work], seconds: float) -> dict[str, float]:
    times: list[float] = []
    started, cpu = time.perf_counter(), time.process_time()

    async def repeat(work: Work, number: int) -> None:
        while True:
            begun = time.perf_counter()
            await work(number)
            times.append((time.perf_counter() - begun) * 1_000)
            if time.perf_counter() - started >= seconds:
                return

    await asyncio.gather(*(repeat(work, number) for number, work in enumerate(works)))
    return {
        "calls": len(times),
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "p50_ms": statistics.median(times),
    }


def _tell(answer: dict[str, float]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
