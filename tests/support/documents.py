"""Documents and images as people have them, made by the libraries that make them elsewhere."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence

import docx
import openpyxl
import pptx
from fpdf import FPDF
from PIL import Image

# The fonts that every PDF reader has know no typographic quotes and dashes.
_LATIN = str.maketrans({"\N{RIGHT SINGLE QUOTATION MARK}": "'", "\N{EN DASH}": "-"})
DOCX_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"


def make_pdf(*paragraphs: str) -> bytes:
    """Return a PDF of these paragraphs."""
    pdf = FPDF()
    pdf.add_page()
    pdf.set_font("Helvetica", size=12)
    for paragraph in paragraphs:
        pdf.multi_cell(0, 8, paragraph)
        pdf.ln(4)
    return bytes(pdf.output())


def make_docx(title: str, *paragraphs: str) -> bytes:
    """Return a Word document."""
    document = docx.Document()
    document.add_heading(title, 1)
    for paragraph in paragraphs:
        document.add_paragraph(paragraph)
    return _saved(document)


def make_pdf_of(blocks: Sequence[str]) -> bytes:
    """Return a PDF of headings (`# …`) and paragraphs."""
    pdf = FPDF()
    pdf.add_page()
    for block in blocks:
        heading = block.startswith("#")
        pdf.set_font("Helvetica", style="B" if heading else "", size=14 if heading else 11)
        pdf.multi_cell(0, 6, block.lstrip("# ").translate(_LATIN), new_x="LMARGIN", new_y="NEXT")
        pdf.ln(3)
    return bytes(pdf.output())


def make_docx_of(blocks: Sequence[str]) -> bytes:
    """Return a Word document of headings (`# …`) and paragraphs."""
    document = docx.Document()
    for block in blocks:
        level = len(block) - len(block.lstrip("#"))
        if level:
            document.add_heading(block.lstrip("# "), level)
        else:
            document.add_paragraph(block)
    return _saved(document)


def make_pptx(*slides: tuple[str, str]) -> bytes:
    """Return a presentation; each slide has a title and a text."""
    presentation = pptx.Presentation()
    for title, text in slides:
        slide = presentation.slides.add_slide(presentation.slide_layouts[1])
        slide.shapes.title.text = title
        slide.placeholders[1].text = text
    return _saved(presentation)


def make_xlsx(*rows: Sequence[object]) -> bytes:
    """Return a workbook of one sheet."""
    workbook = openpyxl.Workbook()
    for row in rows:
        workbook.worksheets[0].append(list(row))
    return _saved(workbook)


def make_zip_bomb(member: str, size_bytes: int) -> bytes:
    """Return a small archive whose member unpacks to so many spaces."""
    made = io.BytesIO()
    with (
        zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(member, "w", force_zip64=True) as file,
    ):
        for _ in range(size_bytes // 2**20):
            file.write(b" " * 2**20)
    return made.getvalue()


def make_image(kind: str, width: int = 3, height: int = 2, **options: object) -> bytes:
    """Return an image of a format of Pillow's."""
    made = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(made, kind, **options)
    return made.getvalue()


def _saved(document: object) -> bytes:
    made = io.BytesIO()
    document.save(made)  # type: ignore[attr-defined]
    return made.getvalue()
