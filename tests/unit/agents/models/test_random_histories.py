"""500 random sessions go through each provider's own validation, by its real client library."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from hansard.v1 import event_pb2
from hansard_server.agents.compaction import choose_units
from hansard_server.agents.history import call_id, model_history
from tests.support.providers.bodies import PROVIDERS, BodyMaker
from tests.support.providers.rules import FAULTS
from tests.unit.agents.models.test_messages import LOOK, Talk

SESSIONS = 500
TEXTS = ("", " \n", "Well.", "Schön 中文 🙂", "```json\n{}\n```", "x" * 300)


class RandomSession:
    """A session as the service may come to hold it: turns that end in every way, and what people
    and programs do to its events.
    """

    def __init__(self, provider: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.provider = provider
        self.talk = Talk(provider)
        self.calls = 0
        self.responses = 0

    @property
    def events(self) -> list[event_pb2.Event]:
        """The record so far."""
        return self.talk.events

    def play(self) -> None:
        """Let anything happen, and at the end a turn that has come so far."""
        acts: list[tuple[int, Callable[[], None]]] = [
            *((6, self.turn), (2, self.append), (2, self.hide), (1, self.unhide)),
            *((1, self.delete), (1, self.compact)),
        ]
        weights = [weight for weight, _ in acts]
        for _ in range(self.random.randint(0, 12)):
            self.random.choices([act for _, act in acts], weights)[0]()
            self.number()
        self.running_turn()
        self.number()

    def number(self) -> None:
        """Give the events the sequences that they have in the record."""
        for sequence, event in enumerate(self.events, 1):
            event.sequence = sequence

    def text(self) -> str:
        return self.random.choice(TEXTS)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def turn(self) -> None:
        """Play a turn to an end: an answer, an interrupt, a failure."""
        self.begin_turn()
        for _ in range(self.random.randint(0, 3)):
            self.step()
        match self.random.randint(0, 4):
            case 0:
                self.fail()
            case 1:
                self.interrupt()
            case 2:
                content = '{"n": 1}'
                self.talk.add(structured_output=event_pb2.StructuredOutput(content_json=content))
            case _:
                self.answer()

    def running_turn(self) -> None:
        """Begin a turn, and stop where a crash may have left it, open calls closed."""
        self.begin_turn()
        for _ in range(self.random.randint(0, 2)):
            self.step()
        match self.random.randint(0, 3):
            case 0:
                self.think()
            case 1:
                self.answer()
            case 2:
                self.talk.ask("And something else.")
            case _:
                pass

    def begin_turn(self) -> None:
        # Its agent may have had another model then.
        self.talk.provider = self.provider if self.chance(0.8) else self.random.choice(PROVIDERS)
        self.talk.turn_id = f"trn_{len(self.events)}"
        self.talk.ask(self.text(), *(["art_a"] if self.chance(0.1) else []))
        if self.chance(0.1):
            self.talk.add(context_limit_exceeded=event_pb2.ContextLimitExceeded(message="Too long"))

    def think(self) -> None:
        self.responses += 1
        if self.chance(0.7):
            self.talk.think(self.text() or "Hm.", f"r{self.responses}")
        else:
            self.talk.add(
                thinking=event_pb2.Thinking(content=self.text(), partial=self.chance(0.5))
            )

    def answer(self) -> None:
        self.think()
        self.talk.say(self.text(), f"r{self.responses}")

    def step(self) -> None:
        """Call tools, and write their outputs, with what others write in between."""
        self.think()
        if self.chance(0.3):
            self.talk.say("I look.", f"r{self.responses}")
        open_calls = []
        for _ in range(self.random.randint(1, 3)):
            self.calls += 1
            repeated = "call_0" if self.chance(0.3) else ""
            self.talk.call(f"call_{self.calls}", f"r{self.responses}", repeated)
            open_calls.append(f"call_{self.calls}")
            if self.chance(0.15):
                self.meanwhile()
        for call in open_calls:
            self.talk.output(call, error=self.chance(0.3))
            if self.chance(0.15):
                self.meanwhile()

    def meanwhile(self) -> None:
        turn_id, self.talk.turn_id = self.talk.turn_id, ""
        match self.random.randint(0, 3):
            case 0:
                self.talk.add(custom=event_pb2.Custom(custom_type="com.example.x", data_json="1"))
            case 1:
                upload = event_pb2.ArtifactUpload()
                upload.artifacts.add(artifact_id="art_a", filename="a.txt")
                self.talk.add(artifact_upload=upload)
            case 2:
                self.talk.turn_id = turn_id
                self.talk.add(image_read=event_pb2.ImageRead(artifact_id="art_a"))
            case _:
                self.talk.turn_id = turn_id
                self.talk.ask("Steered.")
        self.talk.turn_id = turn_id

    def fail(self) -> None:
        if self.chance(0.5):
            self.talk.add(thinking=event_pb2.Thinking(content="Cut o", partial=True))

    def interrupt(self) -> None:
        if self.chance(0.5):
            self.talk.add(agent_output=event_pb2.AgentOutput(content=self.text(), partial=True))
        self.talk.add(session_interrupted=event_pb2.SessionInterrupted(reason=self.text()))

    def append(self) -> None:
        """Write what an agent elsewhere says: it keeps to no rule but that of open calls."""
        self.talk.turn_id = ""
        for _ in range(self.random.randint(1, 4)):
            match self.random.randint(0, 4):
                case 0:
                    self.talk.ask(self.text())
                case 1:
                    self.answer()
                case 2:
                    self.calls += 1
                    self.talk.call(f"call_{self.calls}")
                case 3:
                    self.close_some_call()
                case _:
                    self.talk.add(agent_output=event_pb2.AgentOutput(content=self.text()))

    def close_some_call(self) -> None:
        answered = {e.tool_output.tool_call_id for e in self.events if e.HasField("tool_output")}
        for event in self.events:
            call = event.tool_input.tool_call_id
            if call and call not in answered and not event.HasField("deleted_at"):
                self.talk.output(call)
                self.events[-1].hide_reason = event.hide_reason
                return

    def some(self) -> list[event_pb2.Event]:
        """Return an event, and the other half of its call: both are altered together."""
        if not self.events:
            return []
        chosen = self.random.choice(self.events)
        call = call_id(chosen)
        return [chosen] if call is None else [e for e in self.events if call_id(e) == call]

    def hide(self) -> None:
        for event in self.some():
            event.hide_reason = event.hide_reason or event_pb2.HIDE_REASON_MANUAL

    def unhide(self) -> None:
        for event in self.some():
            event.hide_reason = event_pb2.HIDE_REASON_UNSPECIFIED

    def delete(self) -> None:
        for event in self.some():
            event.ClearField(str(event.WhichOneof("payload") or "tool_input"))
            event.deleted_at.seconds = 1

    def compact(self) -> None:
        """Summarise what lies before some event."""
        self.number()
        anchor = self.random.randint(0, len(self.events))
        visible = [e for e in self.events if not e.hide_reason and not e.HasField("deleted_at")]
        chosen = choose_units(visible, anchor)
        if chosen is None:
            return
        for event in self.events:
            if event.sequence in chosen.hides:
                event.hide_reason = event_pb2.HIDE_REASON_COMPACTION
        self.talk.turn_id = f"trn_{len(self.events)}"
        self.talk.add(compaction=event_pb2.Compaction(summary_text="They spoke of bees."))


def check_calls(session: RandomSession) -> None:
    """Assert that no summary has split a call: both halves are seen, or neither is."""
    halves: dict[str, set[bool]] = {}
    for event in session.events:
        call = call_id(event)
        if call is not None:
            halves.setdefault(call, set()).add(bool(event.hide_reason))
    assert all(len(seen) == 1 for seen in halves.values())


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_random_histories_are_taken(provider: str) -> None:
    maker = BodyMaker(provider, vision=True)
    seen: set[str] = set()
    cut = 0
    for seed in range(SESSIONS):
        session = RandomSession(provider, seed)
        session.play()
        check_calls(session)
        budget = None if seed % 2 else session.random.randint(0, 2_000)
        history = model_history(session.events, max_tokens=budget)
        cut += history.left_out
        seen |= {str(event.WhichOneof("payload")) for event in history.events}
        tools = (LOOK,) if seed % 3 else ()
        body = await maker.body(history.events, tools=tools)
        fault = FAULTS[provider](body)
        assert fault == "", f"seed {seed}: {fault}"
    await maker.close()
    # They were of all kinds, and long enough to be cut.
    assert len(seen) == 10, seen
    assert cut > SESSIONS // 10
