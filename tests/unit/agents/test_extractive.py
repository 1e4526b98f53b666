"""`hansard/extractive`: real searches, real quotes, and an honest answer when nothing fits."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansard.v1 import event_pb2
from hansard_server.agents.models.conversation import read_beginning
from hansard_server.agents.models.indexing import is_request
from hansard_server.agents.models.question import STOP_WORDS, content_terms
from hansard_server.domain.words import stem, words
from tests.support.agents import MemoryFiles, MemoryRecorder, make_agent, message, run_turn
from tests.support.documents import DOCX_TYPE, make_docx

TOOLS = ("artifact_grep", "artifact_read")

HANDBOOK = """\
# Employee handbook

## Working hours
Office hours are from nine to five. Flexible hours are agreed with your manager.

## Vacation
Every employee has 28 days of paid vacation a year.
Unused vacation days expire on 31 March of the following year.

## Sick leave
Call your manager on the first day. A doctor's note is needed from the third day on.

## Travel expenses
Train tickets are refunded in second class.
Hotels are refunded up to 120 euros a night.
"""

RECIPES = """\
Pancakes
Mix flour, milk and eggs. Bake in butter.

Tomato soup
Fry onions, add tomatoes, cook for twenty minutes.
"""


def library() -> MemoryFiles:
    filler = "".join(f"Paragraph {n} speaks of nothing much at all.\n\n" for n in range(3_000))
    return MemoryFiles(
        {
            "handbook.md": HANDBOOK.encode(),
            "recipes.txt": RECIPES.encode(),
            "x.txt": filler.encode(),
        },
        chunk_bytes=4_096,
    )


async def ask(
    question: str, *files: str, record: MemoryRecorder | None = None, library: MemoryFiles
) -> MemoryRecorder:
    if record is None:
        record = MemoryRecorder()
    record.store(message(question, *files))
    agent = make_agent("hansard/extractive", tools=TOOLS)
    return await run_turn(agent, recorder=record, files=library)


@pytest.mark.parametrize(
    ("question", "quoted", "where"),
    [
        (
            "How many vacation days do I have?",
            "> Every employee has 28 days of paid vacation a year.",
            "handbook.md (art_handbook_md), lines 6-8:",
        ),
        (
            "When do unused vacations expire?",
            "> Unused vacation days expire on 31 March of the following year.",
            "lines 6-8:",
        ),
        ("What does a hotel refund?", "> Hotels are refunded up to 120 euros a night.", "13-15:"),
        ("how do I cook tomato soup", "> Fry onions, add tomatoes, cook", "recipes.txt (art_"),
        ("Do I need a note from the doctor?", "> Call your manager on the first day.", "10-11:"),
    ],
)
async def test_answers_quote_the_best_passage(question: str, quoted: str, where: str) -> None:
    record = await ask(question, library=library())
    answer = record.texts("agent_output")[0]
    assert quoted in answer.split("\n\n")[0]
    assert where in answer.split("\n")[0]


async def test_every_quoted_line_stands_in_the_file_where_it_says() -> None:
    record = await ask("travel expenses hotels train vacation hours", library=library())
    lines = HANDBOOK.split("\n")
    for passage in record.texts("agent_output")[0].split("\n\n"):
        head, *quoted = passage.split("\n")
        first = int(head.rstrip(":").split("line")[1].strip(" s").split("-")[0])
        for number, line in enumerate(quoted, first):
            assert line == f"> {lines[number - 1]}"


async def test_it_plans_and_uses_its_tools_for_real() -> None:
    record = await ask("When do unused vacation days expire?", library=library())
    tools = [o.tool_name for o in record.outputs()]
    assert set(tools) == {"artifact_grep", "artifact_read"}
    assert not any(output.error for output in record.outputs())
    assert "vacation" in record.texts("thinking")[0]
    # Stopped only by its own last step; the answer came in several deltas.
    assert len([delta for delta in record.deltas if delta]) > 4


async def test_it_says_when_nothing_fits() -> None:
    record = await ask("What is the boiling point of tungsten?", library=library())
    assert record.texts("agent_output")[0].startswith("I do not know. Nothing in the 3 files")


async def test_one_common_word_is_not_a_fit() -> None:
    record = await ask("Which paragraph covers submarine insurance in Norway?", library=library())
    assert record.texts("agent_output")[0].startswith("I do not know. Nothing in the")


async def test_it_says_when_there_are_no_files_or_tools() -> None:
    record = await ask("What about vacation days?", library=MemoryFiles())
    assert "There are no text files in this session" in record.texts("agent_output")[0]
    record = await run_turn(make_agent("hansard/extractive"), "What about vacation days?")
    assert "has no tool to search" in record.texts("agent_output")[0]
    assert record.outputs() == []
    record = await ask("?!", library=library())
    assert "Ask me something" in record.texts("agent_output")[0]


async def test_it_says_why_a_file_can_not_be_searched() -> None:
    files = MemoryFiles()
    files.add("scan.pdf", b"%PDF-1.7", "application/pdf")
    record = await ask("What about vacation days?", library=files)
    assert "scan.pdf (art_scan_pdf) is not UTF-8 text" in record.texts("agent_output")[0]


async def test_a_named_file_is_searched_alone() -> None:
    record = await ask("How many days?", "art_recipes_txt", library=library())
    for event in record.stored:
        if event.HasField("tool_input"):
            assert json.loads(event.tool_input.tool_input_json)["artifact_id"] == "art_recipes_txt"
    assert record.texts("agent_output")[0].startswith("I do not know. Nothing in the one file")


async def test_a_follow_up_is_about_what_was_asked_before() -> None:
    files = library()
    record = await ask("How much is refunded for hotels?", library=files)
    record.turn_id = "trn_second"
    for event in record.waits:
        record.store(event, "trn_test")
    record.waits.clear()
    await ask("And train tickets?", record=record, library=files)
    assert "> Train tickets are refunded in second class." in record.texts("agent_output")[-1]


async def test_with_grep_alone_it_quotes_what_grep_showed() -> None:
    agent = make_agent("hansard/extractive", tools=["artifact_grep"])
    record = await run_turn(agent, "When do unused vacation days expire?", files=library())
    assert "> Unused vacation days expire on 31 March" in record.texts("agent_output")[0]


async def test_a_turn_taken_over_goes_on_from_its_own_findings() -> None:
    files = library()
    whole = await ask("When do unused vacation days expire?", library=files)
    last_output = max(i for i, e in enumerate(whole.stored) if e.HasField("tool_output"))
    half = MemoryRecorder()
    half.stored = whole.stored[: last_output + 1]
    agent = make_agent("hansard/extractive", tools=TOOLS)
    await run_turn(agent, recorder=half, files=files)
    assert half.texts("agent_output") == whole.texts("agent_output")


@pytest.mark.parametrize(
    "forms",
    [
        ["refund", "refunds", "refunded", "refunding"],
        ["policy", "policies"],
        ["expire", "expires", "expired", "expiring"],
        ["ship", "shipping", "shipped", "ships"],
        ["hotel", "hotels"],
        ["cancellation", "cancellations"],
        ["vacation", "vacations"],
    ],
)
def test_forms_of_a_word_have_one_stem(forms: list[str]) -> None:
    assert len({stem(form) for form in forms}) == 1


@given(st.text(st.characters(max_codepoint=127), min_size=1).map(str.lower))
def test_a_stem_is_a_beginning_of_its_word(word: str) -> None:
    assert word.startswith(stem(word))


@given(st.text())
def test_any_text_has_words(text: str) -> None:
    assert all(words(text))
    assert all(stem(word) == term for term, word in content_terms(text).items())


def test_words_of_scripts_without_spaces() -> None:
    assert words("東京タワー is tall") == ["東京", "京タ", "タワ", "ワー", "is", "tall"]
    assert content_terms("What is the manager's name?") == {"manager": "manager", "nam": "name"}
    assert "the" in STOP_WORDS


async def test_broken_tool_outputs_do_not_break_it() -> None:
    record = MemoryRecorder()
    record.store(message("When do vacation days expire?"))
    for number, output in enumerate(("[]", '{"matches": []}', '{"truncated": true}')):
        call = event_pb2.Event()
        call.tool_input.tool_call_id = f"c{number}"
        record.store(call)
        answer = event_pb2.Event()
        answer.tool_output.tool_call_id = f"c{number}"
        answer.tool_output.tool_name = "artifact_grep"
        answer.tool_output.tool_output_json = output
        record.store(answer)
    await run_turn(make_agent("hansard/extractive", tools=TOOLS), recorder=record)
    assert record.texts("agent_output")


async def test_documents_are_converted_once_and_cited() -> None:
    files = MemoryFiles(chunk_bytes=4_096)
    artifact_id = files.add("hours.docx", make_docx("Hours", "The bakery opens at six."), DOCX_TYPE)
    agent = make_agent("hansard/extractive", tools=(*TOOLS, "document_conversion"))
    record = await run_turn(agent, "When does the bakery open?", files=files)
    answer = record.texts("agent_output")[0]
    assert answer.startswith(f"hours.docx ({artifact_id}, read as art_hours_docx_md), lines 1-3:")
    assert "> The bakery opens at six." in answer
    # The session's history is another one, so that the model does not know of the conversion.
    again = await run_turn(agent, "When does the bakery open?", files=files)
    assert "document_conversion" not in [output.tool_name for output in again.outputs()]
    assert again.texts("agent_output")[0] == answer


@pytest.mark.parametrize("tools", [["document_conversion"], ["document_conversion", *TOOLS]])
async def test_a_document_that_can_not_be_converted_is_said(tools: list[str]) -> None:
    files = MemoryFiles()
    files.add("broken.pdf", b"%PDF-1.7 broken", "application/pdf")
    record = MemoryRecorder()
    upload = event_pb2.Event()
    upload.artifact_upload.artifacts.add(
        artifact_id="art_broken_pdf", filename="broken.pdf", mime_type="application/pdf"
    )
    record.store(upload)
    record.store(message("When does the bakery open?"))
    await run_turn(make_agent("hansard/extractive", tools=tools), recorder=record, files=files)
    (answer,) = record.texts("agent_output")
    assert answer.startswith("I do not know.")
    assert "broken.pdf was not converted" in answer
    tried = [output.tool_name for output in record.outputs()]
    assert tried.count("document_conversion") == 1


async def test_with_read_alone_it_reads_what_the_history_names() -> None:
    record = MemoryRecorder()
    upload = event_pb2.Event()
    upload.artifact_upload.artifacts.add(artifact_id="art_handbook_md", filename="handbook.md")
    record.store(upload)
    record.store(message("When do unused vacation days expire?"))
    agent = make_agent("hansard/extractive", tools=["artifact_read"])
    await run_turn(agent, recorder=record, files=library())
    assert "> Unused vacation days expire on 31 March" in record.texts("agent_output")[0]


@pytest.mark.parametrize(
    "text",
    [
        "Please put a.pdf into the collection.",
        "Add this file to the corpus",
        "could you index it?",
        "Store all documents in the knowledge base as notes",
    ],
)
def test_requests_to_index(text: str) -> None:
    assert is_request(text)


@pytest.mark.parametrize(
    "text",
    [
        "How do I add a file to the corpus?",
        "What is in the collection?",
        "Index?",
        "Where are the files kept in the library?",
    ],
)
def test_questions_are_no_requests_to_index(text: str) -> None:
    assert not is_request(text)


async def test_without_its_tool_nothing_is_indexed() -> None:
    record = await ask("Put this file into the corpus.", library=library())
    assert "needs document_index" in record.texts("agent_output")[0]
    assert record.outputs() == []


def test_what_there_is_of_an_answer_that_was_cut_is_used() -> None:
    whole = json.dumps({"matches": [{"line": n, "text": "},{"} for n in range(9)]})
    whole = whole.replace(", ", ",")
    assert [m["line"] for m in read_beginning(whole[:100])["matches"]] == [0, 1, 2]
    assert read_beginning("nonsense") == read_beginning('{"a":[{"b"') == {}
