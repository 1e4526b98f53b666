"""AppendEvents, GetEvent, ListEvents: a caller's own events, and the record read back."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from hansard.v1 import artifact_service_pb2, event_pb2, event_service_pb2
from hansard_server.domain.limits import Limits
from hansard_server.turns.drafts import check_drafts
from tests.support.server import Running, failure
from tests.support.talk import TWENTY_DELTAS, Talk, message, output, rating

Part = artifact_service_pb2.UploadArtifactsRequest

Draft = event_pb2.EventDraft
INVALID = grpc.StatusCode.INVALID_ARGUMENT
MIB = 1024 * 1024
SEED = 7


def call(call_id: str = "c", arguments: str = "{}") -> Draft:
    return Draft(
        tool_input=event_pb2.ToolInput(
            tool_call_id=call_id,
            tool_configuration_name="lookup",
            tool_name="lookup",
            tool_input_json=arguments,
        )
    )


def answer(call_id: str = "c", result: str = "{}", **fields: Any) -> Draft:
    return Draft(
        tool_output=event_pb2.ToolOutput(tool_call_id=call_id, tool_output_json=result, **fields)
    )


def upload_of(*ids: str) -> Draft:
    artifacts = [{"artifact_id": artifact_id} for artifact_id in ids]
    return Draft(artifact_upload={"artifacts": artifacts})


async def upload(talk: Talk) -> str:
    """Upload a file, which becomes event 1; return its id."""
    header = artifact_service_pb2.UploadHeader(filename="a.txt")
    parts = [Part(start=artifact_service_pb2.UploadStart(**talk.keys)), Part(header=header)]
    event = await talk.server.artifacts.UploadArtifacts(iter([*parts, Part(chunk=b"hello")]))
    return event.artifact_upload.artifacts[0].artifact_id


async def test_every_kind_that_outsiders_write_comes_back_as_it_was(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    artifact_id = await upload(talk)
    exact = '{"b": 1, "a": 12345678901234567890, "b": 1.0}'
    drafts = [
        Draft(input_message=message("Hello")),
        Draft(thinking=event_pb2.Thinking(content="hm", provider_data=b"\x00\xff")),
        call(arguments=exact),
        answer(result=exact),
        output("Answer"),
        Draft(structured_output=event_pb2.StructuredOutput(schema_name="s", content_json=exact)),
        Draft(image_read=event_pb2.ImageRead(artifact_id=artifact_id)),
        rating(exact),
    ]
    assert await talk.append(*drafts) == list(range(2, 10))
    events = (await talk.events())[1:]
    for draft, event in zip(drafts, events, strict=True):
        kind = draft.WhichOneof("payload")
        assert event.WhichOneof("payload") == kind
        sent, got = getattr(draft, str(kind)), getattr(event, str(kind))
        if kind == "tool_output":
            assert got.outcome == event_pb2.TOOL_OUTCOME_COMPLETED
            sent.outcome = got.outcome
        assert sent == got
        assert not event.turn_id
        get = event_service_pb2.GetEventRequest(**talk.keys, event_id=event.id)
        assert await hansard.events.GetEvent(get) == event


@pytest.mark.parametrize(
    ("draft", "reason", "field"),
    [
        (Draft(), "INVALID_REQUEST", "events[1].payload"),
        (Draft(id="evt_1", custom=rating().custom), "INVALID_REQUEST", "events[1].id"),
        (
            Draft(compaction=event_pb2.Compaction()),
            "INVALID_MESSAGE_CONTENT",
            "events[1].compaction",
        ),
        (
            Draft(context_limit_exceeded=event_pb2.ContextLimitExceeded()),
            "INVALID_MESSAGE_CONTENT",
            "events[1].context_limit_exceeded",
        ),
        (
            Draft(session_interrupted=event_pb2.SessionInterrupted()),
            "INVALID_MESSAGE_CONTENT",
            "events[1].session_interrupted",
        ),
        (rating("{'a': 1}"), "INVALID_MESSAGE_CONTENT", "events[1].custom.data_json"),
        (rating("NaN"), "INVALID_MESSAGE_CONTENT", "events[1].custom.data_json"),
        (rating(""), "INVALID_MESSAGE_CONTENT", "events[1].custom.data_json"),
        (rating("[" * 100_000), "INVALID_MESSAGE_CONTENT", "events[1].custom.data_json"),
        (
            Draft(custom=event_pb2.Custom(custom_type="rating", data_json="1")),
            "INVALID_REQUEST",
            "events[1].custom.custom_type",
        ),
        (call(arguments="{"), "INVALID_MESSAGE_CONTENT", "events[1].tool_input.tool_input_json"),
        (call(""), "INVALID_REQUEST", "events[1].tool_input.tool_call_id"),
        (answer("unknown"), "TOOL_CALL_NOT_PENDING", "events[1].tool_output.tool_call_id"),
        (
            answer("unknown", outcome=event_pb2.TOOL_OUTCOME_COMPLETED, error=True),
            "INVALID_MESSAGE_CONTENT",
            "events[1].tool_output.outcome",
        ),
        (Draft(input_message={}), "INVALID_REQUEST", "events[1].input_message.messages"),
        (
            upload_of("art_no"),
            "ARTIFACT_NOT_FOUND",
            "events[1].artifact_upload.artifacts[0].artifact_id",
        ),
        (
            Draft(image_read=event_pb2.ImageRead(artifact_id="art_no")),
            "ARTIFACT_NOT_FOUND",
            "events[1].image_read.artifact_id",
        ),
        (
            upload_of("art_\0"),
            "INVALID_REQUEST",
            "events[1].artifact_upload.artifacts[0].artifact_id",
        ),
        (
            Draft(image_read=event_pb2.ImageRead(artifact_id="art_" + "x" * 101)),
            "INVALID_REQUEST",
            "events[1].image_read.artifact_id",
        ),
        (
            answer("unknown", offloaded_artifact={"artifact_id": "\0"}),
            "INVALID_REQUEST",
            "events[1].tool_output.offloaded_artifact.artifact_id",
        ),
        (
            Draft(input_message={"messages": [{"artifact": {"artifact_id": "art_A"}}]}),
            "INVALID_REQUEST",
            "events[1].input_message.messages[0].artifact.artifact_id",
        ),
        (
            rating("[" * 512 + "{}" + "]" * 512),
            "INVALID_MESSAGE_CONTENT",
            "events[1].custom.data_json",
        ),
        (rating('"' + "x" * MIB + '"'), "PAYLOAD_TOO_LARGE", "events[1].custom.data_json"),
    ],
)
async def test_bad_draft_is_refused_and_nothing_stored(
    hansard: Running, draft: Draft, reason: str, field: str
) -> None:
    talk = await Talk(hansard).begin()
    refused = await failure(talk.append(output(), draft, request_id="r"))
    assert (refused.reason, refused.fields) == (reason, (field,))
    assert await talk.events() == []
    assert await talk.append(output(), request_id="r") == [1]


async def test_json_of_any_numbers_and_512_levels_is_taken_as_it_is(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    texts = ["7" * 5_000, "-1." + "7" * 5_000 + "e9999", "[" * 512 + "]" * 512]
    await talk.append(*(rating(text) for text in texts))
    assert [event.custom.data_json for event in await talk.events()] == texts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 513 + "]" * 513, "is nested deeper than 512 levels"),
        ("[" * 500_000, "is nested deeper than 512 levels"),
        ("[1,\n 2", "is not JSON: see line 2, column 3"),
        ("-Infinity", "is not JSON: -Infinity is not JSON"),
    ],
)
async def test_json_is_refused_in_our_own_words(plain: Running, text: str, words: str) -> None:
    talk = await Talk(plain).begin()
    refused = await failure(talk.append(rating(text)))
    assert refused.message == f"events[0].custom.data_json: {words}"


async def test_artifacts_are_mentioned_a_thousand_times_at_most(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    artifact_id = await upload(talk)
    thousand = upload_of(*[artifact_id] * 1_000)
    assert await talk.append(rating(), thousand) == [2, 3]
    one_more = Draft(image_read=event_pb2.ImageRead(artifact_id=artifact_id))
    refused = await failure(talk.append(rating(), thousand, one_more))
    assert (refused.reason, refused.fields) == ("INVALID_REQUEST", ("events[2]",))


async def test_many_artifacts_that_are_not_there_are_refused_at_once(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    ids = (f"art_{number:x}" for number in range(70_000))
    drafts = [upload_of(*(next(ids) for _ in range(1_000))) for _ in range(70)]
    refused = await failure(talk.append(*drafts))
    assert (refused.reason, refused.fields) == ("INVALID_REQUEST", ("events[1]",))


async def test_large_json_keeps_nobody_waiting() -> None:
    """The loop goes on while it is checked."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticking = asyncio.create_task(tick())
    drafts = [rating("[" + "[]," * 5_000 + "0]") for _ in range(250)]
    await check_drafts(drafts, Limits())
    ticking.cancel()
    assert ticks >= 10


async def test_256_drafts_are_taken_and_257_are_not(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    drafts = [rating() for _ in range(257)]
    refused = await failure(talk.append(*drafts))
    assert (refused.code, refused.reason, refused.fields) == (
        INVALID,
        "INVALID_REQUEST",
        ("events",),
    )
    assert (await failure(talk.append())).fields == ("events",)
    assert await talk.append(*drafts[:256]) == list(range(1, 257))


async def test_event_at_its_limit_and_one_past_it(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    empty = event_pb2.Event(agent_output=output("x" * MIB).agent_output).ByteSize() - MIB
    refused = await failure(talk.append(output("x" * (MIB - empty + 1))))
    assert (refused.code, refused.reason, refused.fields) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "PAYLOAD_TOO_LARGE",
        ("events[0]",),
    )
    assert await talk.append(output("x" * (MIB - empty))) == [1]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"agent_key": "no"}, "AGENT_NOT_FOUND"),
        ({"session_key": "no"}, "SESSION_NOT_FOUND"),
        ({"session_uid": "foreign"}, "SESSION_NOT_FOUND"),
        ({"expected_last_sequence": 1}, "SEQUENCE_MISMATCH"),
    ],
)
async def test_append_that_does_not_fit_the_session(
    hansard: Running, fields: dict[str, Any], reason: str
) -> None:
    talk = await Talk(hansard).begin()
    wrong = Talk(hansard)
    wrong.keys |= {name: value for name, value in fields.items() if name in talk.keys}
    rest = {name: value for name, value in fields.items() if name not in talk.keys}
    assert (await failure(wrong.append(output(), **rest))).reason == reason
    assert await talk.events() == []


async def test_appends_once_per_request_id(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    places = await asyncio.gather(
        *(talk.append(output("a"), rating(), request_id="r") for _ in range(8))
    )
    assert places == [[1, 2]] * 8
    refused = await failure(talk.append(output("b"), request_id="r"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "REQUEST_ID_REUSED")
    assert await talk.append(output("a"), rating(), request_id="r", session_uid=talk.uid) == [1, 2]


async def test_given_ids_are_written_once(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    given = output("a", id="aev_mine")
    assert await talk.append(given) == [1]
    assert await talk.append(rating(), given) == [2, 1]
    refused = await failure(talk.append(output("b", id="aev_mine")))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "EVENT_ALREADY_EXISTS",
    )


async def test_only_custom_events_come_into_an_unfinished_turn(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    running, turn_id = await talk.hold()
    assert (await failure(talk.append(output()))).reason == "SESSION_BUSY"
    assert await talk.append(rating()) == [3]
    await talk.release(turn_id)
    rest = [response async for response in running]
    # It is of the session, not of the turn.
    assert [r.event.sequence for r in rest if r.HasField("event")] == [4]
    assert len(await talk.events()) == 4


# Lists --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", [1, 7, 10, 11, 1_000])
async def test_pages_are_the_whole_list_in_both_orders(hansard: Running, page_size: int) -> None:
    talk = await Talk(hansard).begin()
    await talk.append(*(output(f"{number}") for number in range(10)))
    up = await talk.events(page_size=page_size)
    assert [event.sequence for event in up] == list(range(1, 11))
    assert await talk.events(page_size=page_size, order=2) == up[::-1]


async def test_filters(hansard: Running) -> None:
    talk = await Talk(hansard).begin(TWENTY_DELTAS)
    await talk.send()
    await talk.append(rating(), output("mine"))
    everything = await talk.events()
    turn_id = everything[0].turn_id

    async def found(**fields: Any) -> list[int]:
        return [event.sequence for event in await talk.events(page_size=1, **fields)]

    assert await found(types=["agent_output"]) == [3, 5]
    assert await found(types=["agent_output", "custom"], order=2) == [5, 4, 3]
    assert await found(after_sequence=2) == [3, 4, 5]
    assert await found(before_sequence=3) == [1, 2]
    assert await found(after_sequence=1, before_sequence=5, order=2) == [4, 3, 2]
    assert await found(turn_id=turn_id) == [1, 2, 3]
    assert await found(turn_id="trn_nobody") == []
    third = everything[3].created_at
    assert await found(created_at_or_after=third) == [4, 5]
    assert await found(created_before=third) == [1, 2, 3]
    assert await found(created_before=Timestamp(seconds=1)) == []
    assert await found(session_uid=talk.uid, types=["thinking"]) == [2]


async def test_bad_lists(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    await talk.append(*(output() for _ in range(3)))
    other = await talk.another("other").open_session()
    request = event_service_pb2.ListEventsRequest(page_size=1, **talk.keys)
    token = (await hansard.events.ListEvents(request)).next_page_token
    for fields, reason in (
        ({"types": ["rating"]}, "INVALID_REQUEST"),
        ({"page_size": -1}, "INVALID_REQUEST"),
        ({"session_uid": "foreign"}, "SESSION_NOT_FOUND"),
        ({"page_token": "forged"}, "INVALID_PAGE_TOKEN"),
        ({"page_token": token, "types": ["custom"]}, "INVALID_PAGE_TOKEN"),
        ({"page_token": token, "order": 2}, "INVALID_PAGE_TOKEN"),
    ):
        assert (await failure(talk.events(**fields))).reason == reason
    foreign = event_service_pb2.ListEventsRequest(page_token=token, **other.keys)
    assert (await failure(hansard.events.ListEvents(foreign))).reason == "INVALID_PAGE_TOKEN"
    more = event_service_pb2.ListEventsRequest(page_token=token, page_size=2, **talk.keys)
    assert [e.sequence for e in (await hansard.events.ListEvents(more)).events] == [2, 3]


async def test_page_ends_at_three_mebibytes(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    for _ in range(4):
        await talk.append(output("x" * (MIB - 100)))
    request = event_service_pb2.ListEventsRequest(**talk.keys)
    page = await hansard.events.ListEvents(request)
    assert (len(page.events), bool(page.next_page_token)) == (3, True)
    assert len(await talk.events()) == 4


async def test_event_that_is_not_there(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    get = event_service_pb2.GetEventRequest(**talk.keys, event_id="aev_no")
    refused = await failure(hansard.events.GetEvent(get))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "EVENT_NOT_FOUND")


# Writers at once ----------------------------------------------------------------------------------


async def test_sixteen_writers_on_one_session_and_on_sixteen(hansard: Running) -> None:
    talk = await Talk(hansard).begin()
    others = [await talk.another(f"s{number}").open_session() for number in range(16)]
    rng = random.Random(SEED)

    async def write(session: Talk, writer: int) -> list[int]:
        # Each is acknowledged before the next begins: their order is the record's.
        places: list[int] = []
        for number in range(12):
            drafts = [rating(f'"{writer}/{number}/{n}"') for n in range(rng.randrange(1, 4))]
            wish = session.append(*drafts, request_id=f"{writer}/{number}")
            again = session.append(*drafts, request_id=f"{writer}/{number}")
            first, second = await asyncio.gather(wish, again)
            assert first == second == list(range(first[0], first[0] + len(drafts)))
            assert not places or first[0] > places[-1]
            places += first
        return places

    ours = await asyncio.gather(*(write(talk, writer) for writer in range(16)))
    theirs = await asyncio.gather(*(write(other, 99) for other in others))
    events = await talk.events()
    assert sorted(place for places in ours for place in places) == [e.sequence for e in events]
    by_place = {event.sequence: event.custom.data_json for event in events}
    for writer, places in enumerate(ours):
        assert all(by_place[place].startswith(f'"{writer}/') for place in places)
    for other, places in zip(others, theirs, strict=True):
        assert places == [event.sequence for event in await other.events()]
