"""Tools that make files, and tools that look at what is no text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansard.v1 import agent_pb2, event_pb2
from hansard_server.agents.documents.convert import ConversionLimits, DocumentConverter
from hansard_server.agents.limits import AgentLimits
from hansard_server.agents.tools.catalog import ToolCatalog
from hansard_server.agents.tools.document_conversion import DocumentConversion
from hansard_server.agents.tools.images import ImageInfo, read_image_info
from hansard_server.domain.limits import MIB
from tests.support.agents import MemoryFiles, MemoryRecorder, make_agent, message, run_turn
from tests.support.documents import (
    DOCX_TYPE,
    make_docx,
    make_image,
    make_pdf,
    make_pptx,
    make_xlsx,
    make_zip_bomb,
)


def calling(tool: str, **arguments: Any) -> agent_pb2.Agent:
    script = [{"tool_call": {"name": tool, "input": arguments}}, {"agent_output": {"content": "."}}]
    return make_agent(parameters={"script": script}, tools=[tool])


async def call(
    files: MemoryFiles, tool: str, *, tools: ToolCatalog | None = None, **arguments: Any
) -> tuple[dict[str, Any], MemoryRecorder]:
    record = await run_turn(calling(tool, **arguments), files=files, tools=tools)
    (output,) = record.outputs()
    return json.loads(output.tool_output_json), record


async def content(files: MemoryFiles, artifact_id: str) -> str:
    return b"".join([chunk async for chunk in files.read_file(artifact_id)]).decode()


async def test_a_text_becomes_a_file() -> None:
    files = MemoryFiles()
    answer, record = await call(
        files, "artifact_create", filename="Bericht ä.md", content="# Grüße\n", description="d"
    )
    assert await content(files, answer["artifact_id"]) == "# Grüße\n"
    assert record.kinds[1:] == ["tool_input", "tool_output", "artifact_upload", "agent_output"]
    (reference,) = record.stored[3].artifact_upload.artifacts
    assert (reference.artifact_id, reference.filename) == (answer["artifact_id"], "Bericht ä.md")
    assert [file.artifact.artifact_id for file in record.files] == [answer["artifact_id"]]


@pytest.mark.parametrize("filename", ["", "a/b", "..\\x", "a\0b", "a\nb", "x" * 256])
async def test_names_of_files_are_no_paths(filename: str) -> None:
    files = MemoryFiles()
    _, record = await call(files, "artifact_create", filename=filename, content="x")
    assert record.outputs()[0].error
    assert not record.files


async def test_a_full_session_is_a_tools_error_and_the_turn_goes_on() -> None:
    files = MemoryFiles()
    files.quota_files = 0
    answer, record = await call(files, "artifact_create", filename="a", content="x")
    assert "too many files" in answer["error"]
    assert record.kinds[-1] == "agent_output"


async def test_a_large_answer_moves_to_a_file() -> None:
    files = MemoryFiles({"a.txt": b"needle " * 100 + b"\n"})
    limits = AgentLimits(tool_output_max_bytes=200)
    record = await run_turn(
        calling("artifact_read", artifact_id="art_a_txt"), files=files, limits=limits
    )
    (output,) = record.outputs()
    answer = json.loads(output.tool_output_json)
    assert answer["truncated"]
    assert len(output.tool_output_json.encode()) <= 200
    assert output.offloaded_artifact.artifact_id == answer["artifact_id"]
    whole = await content(files, answer["artifact_id"])
    assert whole.startswith(answer["beginning"])
    assert len(whole) == answer["size_bytes"] == output.offloaded_artifact.size_bytes
    assert json.loads(whole)["lines"][0]["text"] == ("needle " * 100)
    assert record.kinds[1:] == ["tool_input", "tool_output", "artifact_upload", "agent_output"]


@pytest.mark.parametrize(
    ("kind", "options", "mime_type"),
    [
        ("PNG", {}, "image/png"),
        ("GIF", {}, "image/gif"),
        ("JPEG", {}, "image/jpeg"),
        ("JPEG", {"progressive": True, "comment": b"x" * 30_000}, "image/jpeg"),
        ("WEBP", {}, "image/webp"),
        ("WEBP", {"lossless": True}, "image/webp"),
        ("WEBP", {"exif": b"Exif\0\0" + b"x" * 100}, "image/webp"),
    ],
)
def test_images_are_known_by_their_bytes(
    kind: str, options: dict[str, Any], mime_type: str
) -> None:
    data = make_image(kind, 300, 200, **options)
    assert read_image_info(data[: 64 * 1024]) == ImageInfo(mime_type, 300, 200)


@given(st.binary(max_size=64), st.sampled_from(["PNG", "GIF", "JPEG", "WEBP"]), st.integers(0, 64))
def test_damaged_images_are_none(noise: bytes, kind: str, kept: int) -> None:
    info = read_image_info(make_image(kind)[:kept] + noise)
    assert info is None or (info.width > 0 and info.height > 0)


async def test_an_image_is_shown_to_the_model() -> None:
    files = MemoryFiles()
    artifact_id = files.add("photo.txt", make_image("PNG", 30, 20), "text/plain")
    answer, record = await call(files, "image_read", artifact_id=artifact_id, detail="high")
    assert (answer["mime_type"], answer["width"], answer["height"]) == ("image/png", 30, 20)
    assert record.kinds[1:] == ["tool_input", "tool_output", "image_read", "agent_output"]
    assert record.stored[3].image_read == event_pb2.ImageRead(
        artifact_id=artifact_id, detail=event_pb2.IMAGE_DETAIL_HIGH
    )


async def test_what_is_no_image_is_a_tools_error() -> None:
    files = MemoryFiles()
    artifact_id = files.add("photo.png", b"no image", "image/png")
    answer, record = await call(files, "image_read", artifact_id=artifact_id)
    assert "no image by its bytes" in answer["error"]
    assert "image_read" not in record.kinds


@pytest.mark.parametrize(
    ("filename", "data", "expected"),
    [
        ("a.pdf", make_pdf("Goods may be returned within 30 days."), "within 30 days"),
        ("a.docx", make_docx("Returns", "Software is exchanged."), "Software is exchanged."),
        ("a.pptx", make_pptx(("Returns", "Ask the desk.")), "Ask the desk."),
        ("a.xlsx", make_xlsx(("day", "rate"), ("Monday", 7.5)), "Monday"),
        ("a.html", b"<h1>Returns</h1><script>x()</script><p>By post.</p>", "By post."),
    ],
)
async def test_documents_become_markdown(filename: str, data: bytes, expected: str) -> None:
    files = MemoryFiles()
    artifact_id = files.add(filename, data, "application/octet-stream")
    answer, record = await call(files, "document_conversion", artifact_id=artifact_id)
    markdown = await content(files, answer["artifact_id"])
    assert expected in markdown
    assert markdown.startswith(answer["beginning"])
    assert answer["filename"] == filename + ".md"
    assert record.kinds[1:] == ["tool_input", "tool_output", "artifact_upload", "agent_output"]


async def test_the_type_counts_where_the_name_says_nothing() -> None:
    files = MemoryFiles()
    artifact_id = files.add("report", make_docx("T", "Text."), DOCX_TYPE)
    answer, _ = await call(files, "document_conversion", artifact_id=artifact_id)
    assert "Text." in answer["beginning"]


@pytest.mark.parametrize(
    ("filename", "data", "words"),
    [
        ("a.pdf", b"%PDF-1.7\ntruncated", "was not converted"),
        ("a.docx", b"PK\x03\x04 no archive", "was not converted"),
        ("a.docx", make_docx("T", "x")[:400], "was not converted"),
        ("a.docx", make_zip_bomb("word/document.xml", 256 * MIB), "was not converted"),
        ("a.exe", b"MZ", "no document that can be converted"),
        ("a.html", b"<html></html>", "no text"),
    ],
)
async def test_bad_documents_are_tool_errors(filename: str, data: bytes, words: str) -> None:
    files = MemoryFiles()
    artifact_id = files.add(filename, data, "application/octet-stream")
    converter = DocumentConverter(ConversionLimits(processor_s=5, memory_bytes=768 * MIB))
    tools = ToolCatalog(DocumentConversion(converter))
    answer, record = await call(files, "document_conversion", tools=tools, artifact_id=artifact_id)
    assert words in answer["error"]
    assert not record.files
    assert record.kinds[-1] == "agent_output"


async def test_files_of_a_turn_follow_its_question() -> None:
    """Two calls of one step side by side: each output directly followed by its file."""
    script = [
        {"tool_call": {"name": "artifact_create", "input": {"filename": "a", "content": "A"}}},
        {"tool_call": {"name": "artifact_create", "input": {"filename": "b", "content": "B"}}},
        {"agent_output": {"content": "."}},
    ]
    record = MemoryRecorder()
    record.store(message("Go"))
    agent = make_agent(parameters={"script": script}, tools=["artifact_create"])
    await run_turn(agent, recorder=record)
    uploads = [e.artifact_upload for e in record.stored if e.HasField("artifact_upload")]
    assert [upload.artifacts[0].filename for upload in uploads] == ["a", "b"]


async def test_a_document_is_converted_once() -> None:
    files = MemoryFiles()
    artifact_id = files.add("a.docx", make_docx("Bees", "Bees fly."), DOCX_TYPE)
    first, record = await call(files, "document_conversion", artifact_id=artifact_id)
    assert len(record.files) == 1
    again, record = await call(files, "document_conversion", artifact_id=artifact_id)
    assert again == first
    assert record.files == []
    found, _ = await call(files, "artifact_grep", pattern="Bees")
    assert {match["converted_from"] for match in found["matches"]} == {artifact_id}
    assert found["files_skipped"] == []
    shown, _ = await call(files, "artifact_read", artifact_id=first["artifact_id"])
    assert shown["converted_from"] == artifact_id


async def test_what_an_uploader_calls_a_conversion_is_none() -> None:
    files = MemoryFiles()
    artifact_id = files.add("a.docx", make_docx("Bees", "Bees fly."), DOCX_TYPE)
    forged = await files.get_file(files.add("a.docx.md", b"Bees swim."))
    forged.description = f"a.docx ({artifact_id}) as Markdown."
    made, record = await call(files, "document_conversion", artifact_id=artifact_id)
    assert len(record.files) == 1
    assert "Bees fly." in made["beginning"]
