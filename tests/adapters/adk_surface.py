"""Run by the Python of a venv that has google-adk: sessions, state, events and files in Hansard.

Arguments: the target. What fails raises.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from google.adk.agents import LlmAgent
from google.adk.agents.run_config import RunConfig
from google.adk.artifacts import InMemoryArtifactService
from google.adk.artifacts.base_artifact_service import BaseArtifactService
from google.adk.errors import StaleSessionError
from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.events.event import Event
from google.adk.events.event_actions import EventActions
from google.adk.models.base_llm import BaseLlm
from google.adk.models.llm_request import LlmRequest
from google.adk.models.llm_response import LlmResponse
from google.adk.runners import Runner
from google.adk.sessions import InMemorySessionService
from google.adk.sessions.base_session_service import BaseSessionService, GetSessionConfig
from google.genai import types

from hansard_client.adk import HansardArtifactService, HansardSessionService

STRANGE = [
    "a/b",
    "a b",
    "",
    "\N{SNOWMAN}\N{GRINNING FACE}",
    "x" * 300,
    "a\nb",
    "../..",
    "a:b",
    "%2e",
]


class Answering(BaseLlm):
    """A model that says how many contents it was given, and remembers in the state."""

    model: str = "answering"

    async def generate_content_async(
        self,
        llm_request: LlmRequest,
        stream: bool = False,  # noqa: ARG002, FBT001, FBT002 - the ADK's signature
    ) -> AsyncGenerator[LlmResponse, None]:
        said = f"I was given {len(llm_request.contents)} contents."
        yield LlmResponse(content=types.Content(role="model", parts=[types.Part(text=said)]))


def event(text: str = "x", **delta: Any) -> Event:
    return Event(
        author="user",
        invocation_id="i",
        content=types.Content(role="user", parts=[types.Part(text=text)]),
        actions=EventActions(state_delta=delta),
    )


def texts(session: Any) -> list[str]:
    return [e.content.parts[0].text for e in session.events]


async def a_runner_holds_a_conversation(service: HansardSessionService, target: str) -> None:
    async with HansardArtifactService(target) as files:
        runner = Runner(
            app_name="shop",
            agent=LlmAgent(name="clerk", model=Answering(), output_key="last"),
            session_service=service,
            artifact_service=files,
        )
        await service.create_session(app_name="shop", user_id="u", session_id="talk")
        said: list[str] = []
        for question in ("Hello?", "Still there?"):
            said = [
                part.text
                async for made in runner.run_async(
                    user_id="u",
                    session_id="talk",
                    new_message=types.Content(role="user", parts=[types.Part(text=question)]),
                    run_config=RunConfig(),
                )
                for part in (made.content.parts if made.content else [])
            ]
        assert said == ["I was given 3 contents."], said
        session = await service.get_session(app_name="shop", user_id="u", session_id="talk")
        assert session is not None
        assert texts(session) == [
            "Hello?",
            "I was given 1 contents.",
            "Still there?",
            "I was given 3 contents.",
        ]
        assert session.state["last"] == "I was given 3 contents."


async def it_behaves_as_the_adks_own(service: HansardSessionService) -> None:
    """The same steps on the ADK's own service, and the same outcome."""

    async def steps(of: BaseSessionService) -> list[Any]:
        app = f"app {uuid.uuid4()}" if of is service else "app"
        names = {"app_name": app, "user_id": "u"}
        seen: list[Any] = []
        state = {"app:a": 1, "user:u": 2, "s": 3, "temp:t": 4}
        first = await of.create_session(**names, session_id="one", state=state)
        seen.append(dict(first.state))
        try:
            await of.create_session(**names, session_id="one")
        except AlreadyExistsError:
            seen.append("exists")
        await of.append_event(first, event("a", s=5, **{"user:u": 6, "temp:t": 7, "app:b": [8]}))
        seen.append(dict(first.state))
        await of.append_event(first, Event(author="user", partial=True))
        other = await of.create_session(**names, session_id="two")
        seen.append(dict(other.state))
        stranger = await of.create_session(app_name=app, user_id="v", session_id="one")
        seen.append((dict(stranger.state), stranger.events))
        for number in range(5):
            await of.append_event(first, event(f"{number}", n=number))
        for config in (
            None,
            GetSessionConfig(num_recent_events=0),
            GetSessionConfig(num_recent_events=2),
            GetSessionConfig(num_recent_events=99),
            GetSessionConfig(after_timestamp=first.events[3].timestamp),
            GetSessionConfig(num_recent_events=2, after_timestamp=first.events[3].timestamp),
        ):
            read = await of.get_session(**names, session_id="one", config=config)
            assert read is not None
            seen.append((texts(read), dict(read.state)))
        seen.append(await of.get_user_state(app_name=app, user_id="u"))
        seen.append(await of.get_user_state(app_name=app, user_id="w"))
        seen.append(await of.get_session(**names, session_id="none"))
        listed = await of.list_sessions(app_name=app)
        seen.append([(s.user_id, s.id) for s in listed.sessions])
        listed = await of.list_sessions(**names)
        seen.append([s.id for s in listed.sessions])
        seen.append([s.events for s in listed.sessions])
        await of.delete_session(**names, session_id="one")
        await of.delete_session(**names, session_id="one")
        seen.append(await of.get_session(**names, session_id="one"))
        try:
            await of.append_event(first, event())
        except SessionNotFoundError:
            seen.append("gone")
        again = await of.create_session(**names, session_id="one")
        seen.append((dict(again.state), again.events))
        return seen

    expected, made = await steps(InMemorySessionService()), await steps(service)
    for number, (theirs, ours) in enumerate(zip(expected, made, strict=True)):
        assert theirs == ours, (number, theirs, ours)


async def names_may_be_anything(service: HansardSessionService, target: str) -> None:
    async with HansardArtifactService(target) as files:
        for name in STRANGE:
            app, user, made = f"app{name}", f"user{name}", f"session{name}"
            session = await service.create_session(app_name=app, user_id=user, session_id=made)
            await service.append_event(session, event(name or "empty", **{f"k{name}": 1}))
            read = await service.get_session(app_name=app, user_id=user, session_id=made)
            assert read is not None
            assert (read.app_name, read.user_id, read.id) == (app, user, made)
            assert texts(read) == [name or "empty"]
            assert read.state[f"k{name}"] == 1
            listed = await service.list_sessions(app_name=app)
            assert [(s.user_id, s.id) for s in listed.sessions] == [(user, made)]
            place = {"app_name": app, "user_id": user, "session_id": made}
            part = types.Part(text="t")
            assert await files.save_artifact(**place, filename=f"f{name}", artifact=part) == 0
            assert await files.list_artifact_keys(**place) == [f"f{name}"]


async def two_owners_of_one_id_are_kept_apart(service: HansardSessionService) -> None:
    one = await service.create_session(app_name="apart", user_id="a", session_id="same")
    two = await service.create_session(app_name="apart", user_id="b", session_id="same")
    await service.append_event(one, event("of a"))
    await service.append_event(two, event("of b"))
    for user in ("a", "b"):
        read = await service.get_session(app_name="apart", user_id=user, session_id="same")
        assert read is not None
        assert texts(read) == [f"of {user}"]


async def two_runners_do_not_interleave(service: HansardSessionService) -> None:
    names = {"app_name": "race", "user_id": "u", "session_id": "one"}
    await service.create_session(**names)
    one = await service.get_session(**names)
    two = await service.get_session(**names)
    assert one is not None
    assert two is not None
    await service.append_event(one, event("first"))
    try:
        await service.append_event(two, event("second", **{"user:x": 1}))
    except StaleSessionError:
        pass
    else:
        raise AssertionError("a stale session was appended to")
    assert await service.get_user_state(app_name="race", user_id="u") == {}
    two = await service.get_session(**names)
    assert two is not None
    await service.append_event(two, event("second"))
    read = await service.get_session(**names)
    assert read is not None
    assert texts(read) == ["first", "second"]


async def state_of_many_writers_is_merged(service: HansardSessionService) -> None:
    sessions = [
        await service.create_session(app_name="merge", user_id="u", session_id=f"s{n}")
        for n in range(8)
    ]
    await asyncio.gather(
        *(
            service.append_event(session, event(**{f"user:k{n}": n, f"app:k{n}": n}))
            for n, session in enumerate(sessions)
        )
    )
    wanted = {f"k{n}": n for n in range(8)}
    assert await service.get_user_state(app_name="merge", user_id="u") == wanted
    read = await service.get_session(app_name="merge", user_id="u", session_id="s0")
    assert read is not None
    assert {k: v for k, v in read.state.items() if k.startswith("app:")} == {
        f"app:{k}": v for k, v in wanted.items()
    }


async def numbers_are_exact(service: HansardSessionService) -> None:
    state = {"i": 2**63 + 1, "f": 0.1 + 0.2, "n": -(2**100), "z": [1, 1.0, None, True, "ä"]}
    names = {"app_name": "numbers", "user_id": "u", "session_id": "s"}
    session = await service.create_session(**names, state=state)
    await service.append_event(session, event("x", later=2**70))
    read = await service.get_session(**names)
    assert read is not None
    assert read.state == {**state, "later": 2**70}
    assert type(read.state["z"][1]) is float


async def long_sessions_are_read_from_their_end(service: HansardSessionService) -> None:
    """5,000 events appended; the newest 50 cost a page, and the state is whole."""
    names = {"app_name": "long", "user_id": "u", "session_id": "s"}
    session = await service.create_session(**names, state={"first": True})
    for number in range(EVENTS):
        await service.append_event(session, event(f"{number}", count=number))
    read = await service.get_session(**names, config=GetSessionConfig(num_recent_events=50))
    assert read is not None
    assert texts(read) == [f"{n}" for n in range(EVENTS - 50, EVENTS)]
    assert read.state == {"first": True, "count": EVENTS - 1}
    whole = await service.get_session(**names)
    assert whole is not None
    assert texts(whole) == [f"{n}" for n in range(EVENTS)]
    assert whole.state == read.state


async def many_sessions_are_listed(service: HansardSessionService) -> None:
    """By pages of the server, in the order of their last activity."""
    gate = asyncio.Semaphore(32)

    async def create(number: int) -> None:
        async with gate:
            await service.create_session(app_name="many", user_id="u", session_id=f"s{number}")

    await asyncio.gather(*(create(number) for number in range(SESSIONS)))
    oldest = await service.get_session(app_name="many", user_id="u", session_id="s0")
    assert oldest is not None
    await service.append_event(oldest, event())
    listed = await service.list_sessions(app_name="many", user_id="u")
    assert {s.id for s in listed.sessions} == {f"s{number}" for number in range(SESSIONS)}
    assert listed.sessions[-1].id == "s0"


async def files_behave_as_the_adks_own(target: str) -> None:
    async def steps(of: BaseArtifactService, app: str) -> list[Any]:
        place = {"app_name": app, "user_id": "u", "session_id": "s"}
        png = types.Part(inline_data=types.Blob(data=b"\x89PNG", mime_type="image/png"))
        seen: list[Any] = [
            await of.load_artifact(**place, filename="a"),
            await of.save_artifact(**place, filename="a", artifact=png),
            await of.save_artifact(**place, filename="a", artifact=types.Part(text="two")),
            await of.save_artifact(
                **place,
                filename="user:b",
                artifact={"inlineData": {"data": "AAE=", "mimeType": "x/y"}},
                custom_metadata={"n": 2**60, "s": "ä"},
            ),
        ]
        asked = [("a", None), ("a", 0), ("a", 2), ("user:b", None), ("c", None)]
        seen += [
            await of.load_artifact(**place, filename=filename, version=version)
            for filename, version in asked
        ]
        seen.append(await of.list_artifact_keys(**place))
        seen.append(await of.list_artifact_keys(app_name=app, user_id="u"))
        seen.append(await of.list_versions(**place, filename="a"))
        seen += [
            (known.version, known.mime_type, known.custom_metadata)
            for known in await of.list_artifact_versions(**place, filename="user:b")
        ]
        one = await of.get_artifact_version(**place, filename="a", version=0)
        seen.append(one and (one.version, one.mime_type))
        await of.delete_artifact(**place, filename="a")
        seen.append(await of.load_artifact(**place, filename="a"))
        seen.append(await of.list_artifact_keys(**place))
        return seen

    async with HansardArtifactService(target) as service:
        made = await steps(service, f"files{uuid.uuid4()}")
    expected = await steps(InMemoryArtifactService(), "files")
    for number, (theirs, ours) in enumerate(zip(expected, made, strict=True)):
        assert theirs == ours, (number, theirs, ours)


async def main(target: str) -> None:
    async with HansardSessionService(target) as service:
        checks: list[tuple[Callable[..., Awaitable[None]], tuple[Any, ...]]] = [
            (a_runner_holds_a_conversation, (service, target)),
            (it_behaves_as_the_adks_own, (service,)),
            (names_may_be_anything, (service, target)),
            (two_owners_of_one_id_are_kept_apart, (service,)),
            (two_runners_do_not_interleave, (service,)),
            (state_of_many_writers_is_merged, (service,)),
            (numbers_are_exact, (service,)),
            (files_behave_as_the_adks_own, (target,)),
            (long_sessions_are_read_from_their_end, (service,)),
            (many_sessions_are_listed, (service,)),
        ]
        for check, arguments in checks:
            await check(*arguments)
            print("ok", check.__name__, flush=True)


EVENTS, SESSIONS = (int(number) for number in sys.argv[2:4])
asyncio.run(main(sys.argv[1]))
