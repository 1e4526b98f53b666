"""A hundred documents that were made to harm whoever reads them."""

from __future__ import annotations

import json
import random
import struct
import zlib
from dataclasses import dataclass

from tests.support.hostile_archives import (
    BOOKS,
    LAUGHS,
    MIB,
    SECRET_FILE,
    SHEETS,
    SLIDES,
    WORD,
    Make,
    archive,
    cell,
    docx,
    epub,
    paragraph,
    png,
    pptx,
    shape,
    xlsx,
)


@dataclass(frozen=True)
class Hostile:
    """A document by its filename, and the type that its uploader claims, if any."""

    filename: str
    make: Make
    mime_type: str = ""


def pdf(*objects: bytes, trailer: bytes = b"/Root 1 0 R") -> bytes:
    """Return a PDF of these objects, numbered from 1."""
    data, places = b"%PDF-1.7\n", []
    for number, inside in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, inside)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return (
        data
        + b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<</Size %d %s>>\nstartxref\n%d\n%%%%EOF\n"
        % (
            len(objects) + 1,
            table,
            len(objects) + 1,
            trailer,
            len(data),
        )
    )


def stream(data: bytes, entries: bytes = b"") -> bytes:
    return b"<</Length %d %s>>\nstream\n%s\nendstream" % (len(data), entries, data)


_CATALOG = b"<</Type/Catalog/Pages 2 0 R>>"
_PAGES = b"<</Type/Pages/Kids[3 0 R]/Count 1>>"
_FONT = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"
_TEXT = b"BT /F 12 Tf 72 720 Td (Hello) Tj ET"


def page(content: bytes, entries: bytes = b"", *more: bytes, extra: bytes = b"") -> bytes:
    """Return a PDF of one page with this content stream, whose dictionary has the entries."""
    leaf = (
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R"
        b"/Resources<</Font<</F 5 0 R>>/XObject<</X 6 0 R>>>>%s>>" % extra
    )
    return pdf(_CATALOG, _PAGES, leaf, stream(content, entries), _FONT, *more)


def flate(data: bytes, times: int = 1) -> bytes:
    for _ in range(times):
        data = zlib.compress(data, 9)
    return data


_NOISE = random.Random(7).randbytes(200_000)
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def compound(*, loop: bool) -> bytes:
    """Return an OLE file whose chain of sectors never ends, or one of noise."""
    if not loop:
        return _OLE + _NOISE
    header = _OLE + bytes(16) + struct.pack("<HHHHH", 0x3E, 3, 0xFFFE, 9, 6) + bytes(10)
    header += struct.pack("<IIIIIIII", 1, 1, 0, 4096, 1, 1, 0, 0)
    header += struct.pack("<I", 0) + struct.pack("<I", 0xFFFFFFFF) * 108
    fat = struct.pack("<128I", *([1, 0] + [1] * 126))
    return header.ljust(512, b"\0") + fat + bytes(range(256)) * 8


PAGES: dict[str, Make] = {
    "empty.pdf": lambda: b"",
    "header alone.pdf": lambda: b"%PDF-1.7\n",
    "noise.pdf": lambda: b"%PDF-1.7\n" + _NOISE,
    "truncated.pdf": lambda: page(_TEXT)[:350],
    "page tree that is a loop.pdf": lambda: pdf(
        _CATALOG, b"<</Type/Pages/Kids[2 0 R 2 0 R]/Count 2>>"
    ),
    "page tree that is a long loop.pdf": lambda: pdf(
        _CATALOG,
        b"<</Type/Pages/Kids[3 0 R 4 0 R]/Count 9>>",
        b"<</Type/Pages/Kids[4 0 R 2 0 R]/Count 9>>",
        b"<</Type/Pages/Kids[2 0 R 3 0 R]/Count 9>>",
    ),
    "parent of itself.pdf": lambda: pdf(
        _CATALOG, _PAGES, b"<</Type/Page/Parent 3 0 R/Contents 4 0 R>>", stream(_TEXT)
    ),
    "deep arrays.pdf": lambda: pdf(_CATALOG, b"[" * 300_000 + b"]" * 300_000),
    "deep dictionaries.pdf": lambda: pdf(_CATALOG, b"<</A" * 100_000 + b">>" * 100_000),
    "bomb.pdf": lambda: page(flate(bytes(700 * MIB)), b"/Filter/FlateDecode"),
    "bomb in a bomb.pdf": lambda: page(
        flate(bytes(1_000 * MIB), 3), b"/Filter[/FlateDecode/FlateDecode/FlateDecode]"
    ),
    "ten bombs.pdf": lambda: page(
        flate(b" " * (200 * MIB)),
        b"/Filter/FlateDecode",
        extra=b"/Contents[" + b"4 0 R " * 10 + b"]",
    ),
    "bomb of run lengths.pdf": lambda: page(
        b"\x81 " * 2_000_000 + b"\x80", b"/Filter/RunLengthDecode"
    ),
    "bomb of predictors.pdf": lambda: page(
        flate(bytes(9 * MIB)),
        b"/Filter/FlateDecode/DecodeParms<</Predictor 12/Columns 2000000000/Colors 9>>",
    ),
    "a million texts.pdf": lambda: page(
        flate(b"BT /F 12 Tf 1 1 Td (x) Tj ET\n" * 1_000_000), b"/Filter/FlateDecode"
    ),
    "a hundred thousand pages.pdf": lambda: pdf(
        _CATALOG,
        b"<</Type/Pages/Kids[" + b"3 0 R " * 100_000 + b"]/Count 100000>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R"
        b"/Resources<</Font<</F 5 0 R>>>>>>",
        stream(_TEXT),
        _FONT,
    ),
    "count that is not so.pdf": lambda: pdf(_CATALOG, b"<</Type/Pages/Kids[]/Count 2147483647>>"),
    "form of itself.pdf": lambda: page(
        b"/X Do",
        b"",
        stream(
            b"/X Do /X Do",
            b"/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</X 6 0 R>>>>",
        ),
    ),
    "forms that double.pdf": lambda: page(
        b"/X Do",
        b"",
        *(
            stream(
                b"/X Do " * 10,
                b"/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</X %d 0 R>>>>"
                % (number + 1),
            )
            for number in range(6, 26)
        ),
    ),
    "image of a gigapixel.pdf": lambda: page(
        b"q 9 0 0 9 0 0 cm /X Do Q",
        b"",
        stream(
            flate(bytes(1_000)),
            b"/Type/XObject/Subtype/Image/Width 1000000/Height 1000000/BitsPerComponent 8"
            b"/ColorSpace/DeviceRGB/Filter/FlateDecode",
        ),
    ),
    "table of itself.pdf": lambda: (
        b"%PDF-1.7\nxref\n0 1\n0000000000 65535 f \n"
        b"trailer\n<</Size 1/Root 1 0 R/Prev 9>>\nstartxref\n9\n%%EOF"
    ),
    "objects of a stream.pdf": lambda: pdf(
        _CATALOG,
        _PAGES,
        stream(
            flate(b"1 0 " * 50_000_000), b"/Type/ObjStm/N 2000000000/First 8/Filter/FlateDecode"
        ),
        trailer=b"/Root 9 0 R",
    ),
    "stream of cross references.pdf": lambda: (
        b"%PDF-1.7\n1 0 obj\n"
        + stream(
            flate(bytes(200 * MIB)),
            b"/Type/XRef/Size 2000000000/W[1 8 8]/Index[0 2000000000]/Root 1 0 R"
            b"/Filter/FlateDecode",
        )
        + b"\nendobj\nstartxref\n9\n%%EOF"
    ),
    "length of its own.pdf": lambda: pdf(
        _CATALOG, _PAGES, b"<</Length 3 0 R>>\nstream\nx\nendstream"
    ),
    "unknown lock.pdf": lambda: pdf(
        _CATALOG,
        _PAGES,
        b"<</Filter/Nobody/V 99/R 99/O(x)/U(x)/P -1>>",
        trailer=b"/Root 1 0 R/Encrypt 3 0 R/ID[(a)(a)]",
    ),
    "program.pdf": lambda: page(
        _TEXT, extra=b"/AA<</O<</S/Launch/F(/bin/sh)>>>>/Annots[<</S/JavaScript/JS(app.alert(1))>>]"
    ),
    "map of characters.pdf": lambda: page(
        _TEXT.replace(b"(Hello)", b"<0001>"),
        extra=b"/Resources<</Font<</F<</Type/Font/Subtype/Type0/BaseFont/A/Encoding/Identity-H"
        b"/ToUnicode 6 0 R>>>>>>",
    ),
}
WEB: dict[str, Make] = {
    "deep.html": lambda: b"<div>" * 500_000,
    "unclosed.html": lambda: b"<p><b><i><table><td>" * 200_000,
    "huge attribute.html": lambda: b'<p title="' + b"x" * (40 * MIB) + b'">Hello</p>',
    "one long word.html": lambda: b"<p>" + b"x" * (40 * MIB),
    "noise.html": lambda: _NOISE,
    "zeros.html": lambda: bytes(5 * MIB),
    "laughs.html": f"{LAUGHS}<p>&k;</p>".encode,
    "table in a table.html": lambda: b"<table><tr><td>" * 20_000 + b"x",
}
TABLES: dict[str, Make] = {
    "a million columns.csv": lambda: b"a," * 1_000_000 + b"\n1",
    "open quote.csv": lambda: b'"' + b"x,\n" * 5_000_000,
    "wide then long.csv": lambda: b"a," * 20_000 + b"\n" + b"1\n" * 50_000,
    "noise.csv": lambda: _NOISE,
    "compound.xls": lambda: compound(loop=False),
    "loop.xls": lambda: compound(loop=True),
    "web page.xls": lambda: b"<html><table><tr><td>1</td></tr></table></html>",
    "compound.msg": lambda: compound(loop=False),
    "loop.msg": lambda: compound(loop=True),
}
TEXTS: dict[str, Make] = {
    "deep.ipynb": lambda: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "no notebook.ipynb": lambda: b"[1, 2]",
    "huge cell.ipynb": lambda: json.dumps(
        {"nbformat": 4, "cells": [{"cell_type": "markdown", "source": ["x" * (30 * MIB)]}]}
    ).encode(),
    "laughs.rss": f"{LAUGHS}<rss><channel><title>&k;</title></channel></rss>".encode,
    "secret file.rss": f"{SECRET_FILE}<rss><title>&f;</title></rss>".encode,
    "deep.rss": lambda: b"<rss>" * 300_000,
    "laughs.xml": f"{LAUGHS}<x>&k;</x>".encode,
    "secret file.xml": f"{SECRET_FILE}<x>&f;</x>".encode,
    "half a character.txt": lambda: b"\xe2\x82" * 100_000,
    "deep.json": lambda: b"[" * 1_000_000,
}
WRONG = [
    Hostile("picture.pdf", lambda: png(60_000, 60_000), "application/pdf"),
    Hostile("archive.pdf", lambda: archive({"a.txt": bytes(500 * MIB)}), "application/pdf"),
    Hostile(
        "a pdf.docx",
        lambda: page(_TEXT),
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ),
    Hostile("program.pdf", lambda: b"\x7fELF" + _NOISE, "application/pdf"),
    Hostile("a docx.xlsx", lambda: docx(paragraph("Hello"))),
    Hostile("nothing.docx", lambda: b""),
    Hostile("program.exe", lambda: b"MZ" + _NOISE),
    Hostile("above the limit.txt", lambda: b"x" * (65 * MIB)),
]

_BY_NAME = (WORD, SHEETS, SLIDES, BOOKS, PAGES, WEB, TABLES, TEXTS)
ALL: list[Hostile] = [
    *(Hostile(name, make) for group in _BY_NAME for name, make in group.items()),
    *WRONG,
]
PLAIN = [
    Hostile("plain.docx", lambda: docx(paragraph("Hello"))),
    Hostile("plain.xlsx", lambda: xlsx(f"<row r='1'>{cell('A1', 'Hello')}</row>")),
    Hostile("plain.pptx", lambda: pptx(shape("Hello"))),
    Hostile("plain.epub", lambda: epub({"a.xhtml": "<p>Hello</p>"})),
    Hostile("plain.pdf", lambda: page(_TEXT)),
]
"""Of the same making, and harmless: what is refused is so for what was done to it."""
SAMPLE = [
    one
    for one in ALL
    if one.filename
    in {
        *("laughs.docx", "secret file.docx", "paths.docx", "overlapping.docx"),
        *("nested archives.docx", "laughs in strings.xlsx", "deep groups.pptx", "paths.epub"),
        *("bomb in a bomb.pdf", "page tree that is a long loop.pdf", "table of itself.pdf"),
        *("deep.html", "loop.xls", "picture.pdf", "program.exe"),
    }
]
