"""Run by the Python of a venv that has google-adk: what a turn at the end of a long session costs.

Arguments: Hansard's target, a database URL for the ADK's own service, events, rounds. Fills a
session by both services, then times "get the newest 50, append 3" by both in turn, and writes
seconds for each as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from google.adk.events.event import Event
from google.adk.events.event_actions import EventActions
from google.adk.sessions import DatabaseSessionService
from google.adk.sessions.base_session_service import BaseSessionService, GetSessionConfig
from google.genai import types

from hansard_client.adk import HansardSessionService

NAMES = {"app_name": "bench", "user_id": "u", "session_id": "s"}
TURNS = 5


def event(number: int) -> Event:
    text = types.Part(text="x" * 400)
    return Event(
        author="user",
        invocation_id="i",
        content=types.Content(role="user", parts=[text]),
        actions=EventActions(state_delta={"n": number}),
    )


async def fill(service: BaseSessionService, events: int) -> None:
    session = await service.create_session(**NAMES)
    for number in range(events):
        await service.append_event(session, event(number))
        session.events.clear()


async def turn(service: BaseSessionService, recent: int | None) -> float:
    started = time.perf_counter()
    for _ in range(TURNS):
        config = None if recent is None else GetSessionConfig(num_recent_events=recent)
        session = await service.get_session(**NAMES, config=config)
        assert session is not None
        for number in range(3):
            await service.append_event(session, event(number))
    return (time.perf_counter() - started) / TURNS


async def main(target: str, url: str, events: int, rounds: int) -> None:
    own = DatabaseSessionService(url)
    async with HansardSessionService(target) as hansard, own:
        await fill(hansard, events)
        await fill(own, events)
        # A runner's default is the whole session; the newest 50 are what a caller may ask for.
        kinds: dict[str, tuple[Any, int | None]] = {
            "own, whole": (own, None),
            "own, whole again": (own, None),
            "own, newest 50": (own, 50),
            "hansard, whole": (hansard, None),
            "hansard, newest 50": (hansard, 50),
        }
        measured: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(rounds):
            for name, (service, recent) in kinds.items():
                measured[name].append(await turn(service, recent))
    sys.stdout.write(json.dumps(measured) + "\n")


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
