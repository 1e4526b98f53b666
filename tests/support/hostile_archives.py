"""Hostile documents that are archives: DOCX, PPTX, XLSX and EPUB, made of parts by hand."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping

MIB = 1024 * 1024
Parts = Mapping[str, bytes | str]

_RELS = "http://schemas.openxmlformats.org/package/2006/relationships"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_SLIDE = "http://schemas.openxmlformats.org/presentationml/2006/main"
_DRAWING = "http://schemas.openxmlformats.org/drawingml/2006/main"
_TYPES = "application/vnd.openxmlformats-officedocument."

LAUGHS = "<!DOCTYPE x [<!ENTITY a 'ha'>{}]>".format(
    "".join(f"<!ENTITY {chr(98 + n)} '{f'&{chr(97 + n)};' * 10}'>" for n in range(10))
)
"""A billion laughs: `&k;` is ten thousand million of them."""
QUADRATIC = f"<!DOCTYPE x [<!ENTITY a '{'x' * 100_000}'>]>"
SECRET_FILE = "<!DOCTYPE x [<!ENTITY f SYSTEM 'file:///etc/passwd'>]>"
REMOTE_DTD = "<!DOCTYPE x SYSTEM 'http://127.0.0.1:9/x.dtd'>"


def archive(parts: Parts, *, level: int = 9) -> bytes:
    """Return the parts as a zip archive."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as file:
        for name, data in parts.items():
            file.writestr(name, data)
    return made.getvalue()


def relations(*targets: tuple[str, str], mode: str = "") -> str:
    """Return a part of relationships: rId1, rId2 …, each of a kind to a target."""
    inside = "".join(
        f'<Relationship Id="rId{n}" Type="{_OFFICE}/{kind}" Target="{target}"{mode}/>'
        for n, (kind, target) in enumerate(targets, 1)
    )
    return f'<Relationships xmlns="{_RELS}">{inside}</Relationships>'


def _types(**overrides: str) -> str:
    inside = "".join(
        f'<Override PartName="/{name}" ContentType="{_TYPES}{kind}+xml"/>'
        for name, kind in overrides.items()
    )
    return (
        '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        '<Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Default Extension="xml" ContentType="application/xml"/>'
        f'<Default Extension="png" ContentType="image/png"/>{inside}</Types>'
    )


def docx(body: str, *, prolog: str = "", root_extra: str = "", more: Parts | None = None) -> bytes:
    """Return a DOCX with this body; `prolog` stands before its root."""
    document = (
        f'{prolog}<w:document xmlns:w="{_WORD}" xmlns:r="{_OFFICE}" '
        f'xmlns:a="{_DRAWING}"{root_extra}><w:body>{body}</w:body></w:document>'
    )
    parts: dict[str, bytes | str] = {
        "[Content_Types].xml": _types(**{"word/document.xml": "wordprocessingml.document.main"}),
        "_rels/.rels": relations(("officeDocument", "word/document.xml")),
        "word/document.xml": document,
    }
    return archive({**parts, **(more or {})})


def paragraph(text: str) -> str:
    return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"


def xlsx(
    rows: str, *, prolog: str = "", before: str = "", after: str = "", more: Parts | None = None
) -> bytes:
    """Return an XLSX of one sheet with these rows, and what stands before and after them."""
    sheet = (
        f'{prolog}<worksheet xmlns="{_SHEET}">{before}<sheetData>{rows}</sheetData>{after}'
        "</worksheet>"
    )
    parts: dict[str, bytes | str] = {
        "[Content_Types].xml": _types(
            **{
                "xl/workbook.xml": "spreadsheetml.sheet.main",
                "xl/worksheets/sheet1.xml": "spreadsheetml.worksheet",
                "xl/sharedStrings.xml": "spreadsheetml.sharedStrings",
            }
        ),
        "_rels/.rels": relations(("officeDocument", "xl/workbook.xml")),
        "xl/workbook.xml": f'<workbook xmlns="{_SHEET}" xmlns:r="{_OFFICE}"><sheets>'
        '<sheet name="S" sheetId="1" r:id="rId1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": relations(
            ("worksheet", "worksheets/sheet1.xml"), ("sharedStrings", "sharedStrings.xml")
        ),
        "xl/worksheets/sheet1.xml": sheet,
        "xl/sharedStrings.xml": f'<sst xmlns="{_SHEET}"><si><t>shared</t></si></sst>',
    }
    return archive({**parts, **(more or {})})


def cell(place: str, text: str) -> str:
    return f'<c r="{place}" t="inlineStr"><is><t>{text}</t></is></c>'


def pptx(tree: str, *, prolog: str = "", more: Parts | None = None) -> bytes:
    """Return a PPTX of one slide with this tree of shapes."""
    names = f'xmlns:p="{_SLIDE}" xmlns:a="{_DRAWING}" xmlns:r="{_OFFICE}"'
    shapes = f"<p:cSld><p:spTree><p:nvGrpSpPr/><p:grpSpPr/>{tree}</p:spTree></p:cSld>"
    empty = "<p:cSld><p:spTree><p:nvGrpSpPr/><p:grpSpPr/></p:spTree></p:cSld>"
    parts: dict[str, bytes | str] = {
        "[Content_Types].xml": _types(
            **{
                "ppt/presentation.xml": "presentationml.presentation.main",
                "ppt/slides/slide1.xml": "presentationml.slide",
                "ppt/slideLayouts/slideLayout1.xml": "presentationml.slideLayout",
                "ppt/slideMasters/slideMaster1.xml": "presentationml.slideMaster",
            }
        ),
        "_rels/.rels": relations(("officeDocument", "ppt/presentation.xml")),
        "ppt/presentation.xml": f"<p:presentation {names}><p:sldMasterIdLst><p:sldMasterId "
        'id="2147483648" r:id="rId2"/></p:sldMasterIdLst><p:sldIdLst><p:sldId id="256" '
        'r:id="rId1"/></p:sldIdLst></p:presentation>',
        "ppt/_rels/presentation.xml.rels": relations(
            ("slide", "slides/slide1.xml"), ("slideMaster", "slideMasters/slideMaster1.xml")
        ),
        "ppt/slides/slide1.xml": f"{prolog}<p:sld {names}>{shapes}</p:sld>",
        "ppt/slides/_rels/slide1.xml.rels": relations(
            ("slideLayout", "../slideLayouts/slideLayout1.xml")
        ),
        "ppt/slideLayouts/slideLayout1.xml": f"<p:sldLayout {names}>{empty}</p:sldLayout>",
        "ppt/slideLayouts/_rels/slideLayout1.xml.rels": relations(
            ("slideMaster", "../slideMasters/slideMaster1.xml")
        ),
        "ppt/slideMasters/slideMaster1.xml": f"<p:sldMaster {names}>{empty}</p:sldMaster>",
    }
    return archive({**parts, **(more or {})})


def shape(text: str) -> str:
    return (
        '<p:sp><p:nvSpPr><p:cNvPr id="2" name="T"/><p:cNvSpPr/><p:nvPr/></p:nvSpPr>'
        '<p:spPr><a:prstGeom prst="rect"/></p:spPr>'
        f"<p:txBody><a:bodyPr/><a:p><a:r><a:t>{text}</a:t></a:r></a:p></p:txBody></p:sp>"
    )


def group(inside: str) -> str:
    return (
        '<p:grpSp><p:nvGrpSpPr><p:cNvPr id="3" name="G"/><p:cNvGrpSpPr/><p:nvPr/></p:nvGrpSpPr>'
        f"<p:grpSpPr/>{inside}</p:grpSp>"
    )


def epub(
    chapters: Parts,
    *,
    spine: str = "",
    prolog: str = "",
    items: str = "",
    more: Parts | None = None,
) -> bytes:
    """Return an EPUB with these chapters, by their names in its folder."""
    listed = "".join(
        f'<item id="i{n}" href="{name}" media-type="application/xhtml+xml"/>'
        for n, name in enumerate(chapters)
    )
    order = spine or "".join(f'<itemref idref="i{n}"/>' for n in range(len(chapters)))
    package = (
        f'{prolog}<package xmlns="http://www.idpf.org/2007/opf"><metadata '
        'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>T</dc:title></metadata>'
        f"<manifest>{listed}{items}</manifest><spine>{order}</spine></package>"
    )
    parts: dict[str, bytes | str] = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": "<container "
        'xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile '
        'full-path="OEBPS/content.opf"/></rootfiles></container>',
        "OEBPS/content.opf": package,
        **{f"OEBPS/{name}": data for name, data in chapters.items()},
    }
    return archive({**parts, **(more or {})})


def png(width: int, height: int) -> bytes:
    """Return a PNG that says to be so large, and has next to no data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1_000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def matryoshka(depth: int) -> bytes:
    """Return archives in archives, the innermost a bomb."""
    data = archive({f"{n}.txt": bytes(16 * MIB) for n in range(4)})
    for level in range(depth):
        data = archive({f"{level}-{n}.zip": data for n in range(8)})
    return data


def overlapping(entries: int) -> bytes:
    """Return an archive of many entries whose bytes are all the same ones of the file."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("word/document.xml", bytes(16 * MIB))
        first = file.infolist()[0]
        for number in range(entries):
            info = zipfile.ZipInfo(f"word/{number}.xml")
            info.compress_type, info.CRC = first.compress_type, first.CRC
            info.compress_size, info.file_size = first.compress_size, first.file_size
            info.header_offset = first.header_offset
            file.filelist.append(info)
    return made.getvalue()


def lying(data: bytes) -> bytes:
    """Return the archive with sizes in its directory that are not so."""
    changed = bytearray(data)
    at = changed.find(b"PK\x01\x02")
    while at >= 0:
        changed[at + 20 : at + 28] = struct.pack("<II", 10, 0xFFFFFFF0)
        at = changed.find(b"PK\x01\x02", at + 4)
    return bytes(changed)


def protected(data: bytes) -> bytes:
    """Return the archive with every entry said to be encrypted."""
    changed = bytearray(data)
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = changed.find(mark)
        while at >= 0:
            changed[at + flags] |= 1
            at = changed.find(mark, at + 4)
    return bytes(changed)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


Make = Callable[[], bytes]

WORD: dict[str, Make] = {
    "bomb.docx": lambda: docx(paragraph("x" * (300 * MIB))),
    "bomb of paragraphs.docx": lambda: docx(paragraph("x") * 2_000_000),
    "nested archives.docx": lambda: docx(
        paragraph("Hello"), more={"word/media/a.zip": matryoshka(3)}
    ),
    "archives only.docx": lambda: matryoshka(4),
    "laughs.docx": lambda: docx(paragraph("&k;"), prolog=LAUGHS),
    "quadratic.docx": lambda: docx(paragraph("&a;" * 50_000), prolog=QUADRATIC),
    "secret file.docx": lambda: docx(paragraph("[&f;]"), prolog=SECRET_FILE),
    "remote dtd.docx": lambda: docx(paragraph("Hello"), prolog=REMOTE_DTD),
    "deep.docx": lambda: docx("<w:sdt>" * 200_000 + "</w:sdt>" * 200_000),
    "deep tables.docx": lambda: docx(
        "<w:tbl><w:tr><w:tc>" * 3_000 + paragraph("x") + "</w:tc></w:tr></w:tbl>" * 3_000
    ),
    "huge attribute.docx": lambda: docx(paragraph("x"), root_extra=f' a="{"x" * (100 * MIB)}"'),
    "huge picture.docx": lambda: docx(
        '<w:p><w:r><w:drawing><a:blip r:embed="rId1"/></w:drawing></w:r></w:p>'
        + paragraph("Hello"),
        more={
            "word/_rels/document.xml.rels": relations(("image", "media/a.png")),
            "word/media/a.png": png(100_000, 100_000),
        },
    ),
    "picture from outside.docx": lambda: docx(
        '<w:p><w:r><w:drawing><a:blip r:link="rId1"/></w:drawing></w:r></w:p>' + paragraph("Hi"),
        more={
            "word/_rels/document.xml.rels": relations(
                ("image", "file:///etc/passwd"), mode=' TargetMode="External"'
            )
        },
    ),
    "no document.docx": lambda: archive({"[Content_Types].xml": _types(), "a.txt": "a"}),
    "empty archive.docx": lambda: archive({}),
    "truncated.docx": lambda: half(docx(paragraph("Hello " * 10_000))),
    "lying sizes.docx": lambda: lying(docx(paragraph("Hello"))),
    "overlapping.docx": lambda: overlapping(10_000),
    "many entries.docx": lambda: docx(
        paragraph("Hello"), more={f"word/x/{n}.xml": "" for n in range(100_000)}
    ),
    "paths.docx": lambda: docx(
        paragraph("Hello"),
        more={"../../../../tmp/hostile": "x", "/tmp/hostile": "x"},  # noqa: S108
    ),
    "encrypted.docx": lambda: protected(docx(paragraph("Hello"))),
    "loop of relations.docx": lambda: docx(
        paragraph("Hello"),
        more={
            "word/_rels/document.xml.rels": relations(
                ("styles", "document.xml"), ("footnotes", "document.xml")
            )
        },
    ),
}
SHEETS: dict[str, Make] = {
    "bomb.xlsx": lambda: xlsx(f"<row r='1'>{cell('A1', 'x' * (300 * MIB))}</row>"),
    "bomb of rows.xlsx": lambda: xlsx("<row><c><v>1</v></c></row>" * 3_000_000),
    "far corner.xlsx": lambda: xlsx(f"<row r='1048576'>{cell('XFD1048576', 'x')}</row>"),
    "said to be enormous.xlsx": lambda: xlsx(
        f"<row r='1'>{cell('A1', 'x')}</row>", before='<dimension ref="A1:XFD1048576"/>'
    ),
    "merged to the end.xlsx": lambda: xlsx(
        f"<row r='1'>{cell('A1', 'x')}</row>",
        after='<mergeCells><mergeCell ref="A1:XFD1048576"/></mergeCells>',
    ),
    "row beyond the end.xlsx": lambda: xlsx(f"<row r='99999999999'>{cell('A9999999', 'x')}</row>"),
    "laughs.xlsx": lambda: xlsx(f"<row r='1'>{cell('A1', '&k;')}</row>", prolog=LAUGHS),
    "laughs in strings.xlsx": lambda: xlsx(
        '<row r="1"><c r="A1" t="s"><v>0</v></c></row>',
        more={"xl/sharedStrings.xml": f'{LAUGHS}<sst xmlns="{_SHEET}"><si><t>&k;</t></si></sst>'},
    ),
    "secret file.xlsx": lambda: xlsx(f"<row r='1'>{cell('A1', '[&f;]')}</row>", prolog=SECRET_FILE),
    "string that is not there.xlsx": lambda: xlsx(
        '<row r="1"><c r="A1" t="s"><v>4000000000</v></c></row>'
    ),
    "million columns.xlsx": lambda: xlsx(f"<row r='1'>{'<c><v>1</v></c>' * 1_000_000}</row>"),
    "truncated.xlsx": lambda: half(xlsx(f"<row r='1'>{cell('A1', 'Hello ' * 9_000)}</row>")),
    "deep.xlsx": lambda: xlsx("<x>" * 200_000 + "</x>" * 200_000),
    "huge number.xlsx": lambda: xlsx(f'<row r="1"><c r="A1"><v>{"9" * 1_000_000}</v></c></row>'),
}
SLIDES: dict[str, Make] = {
    "bomb.pptx": lambda: pptx(shape("x" * (300 * MIB))),
    "bomb of shapes.pptx": lambda: pptx(shape("x") * 300_000),
    "deep groups.pptx": lambda: pptx(
        "".join(group("|").split("|")[0] for _ in range(5_000)) + "</p:grpSp>" * 5_000
    ),
    "laughs.pptx": lambda: pptx(shape("&k;"), prolog=LAUGHS),
    "secret file.pptx": lambda: pptx(shape("[&f;]"), prolog=SECRET_FILE),
    "slide is the presentation.pptx": lambda: pptx(
        shape("x"),
        more={
            "ppt/_rels/presentation.xml.rels": relations(
                ("slide", "presentation.xml"), ("slideMaster", "presentation.xml")
            )
        },
    ),
    "no slide.pptx": lambda: pptx(
        shape("x"),
        more={"ppt/_rels/presentation.xml.rels": relations(("slide", "slides/none.xml"))},
    ),
    "truncated.pptx": lambda: half(pptx(shape("Hello " * 9_000))),
    "a docx.pptx": lambda: docx(paragraph("Hello")),
}
_PAGE = "<html><body><p>{}</p></body></html>"
BOOKS: dict[str, Make] = {
    "paths.epub": lambda: epub(
        {"../../../../../etc/passwd": _PAGE.format("inside"), "/etc/passwd": _PAGE.format("root")}
    ),
    "paths of what is not there.epub": lambda: epub(
        {"a.xhtml": _PAGE.format("Hello")},
        items='<item id="p" href="../../../../../../etc/passwd" media-type="text/html"/>',
        spine='<itemref idref="i0"/><itemref idref="p"/>',
    ),
    "no container.epub": lambda: archive({"mimetype": "application/epub+zip"}),
    "container of itself.epub": lambda: epub(
        {"a.xhtml": _PAGE.format("x")},
        more={
            "META-INF/container.xml": "<container><rootfiles><rootfile "
            'full-path="META-INF/container.xml"/></rootfiles></container>'
        },
    ),
    "bomb.epub": lambda: epub({"a.xhtml": _PAGE.format("x" * (300 * MIB))}),
    "laughs.epub": lambda: epub({"a.xhtml": _PAGE.format("Hello")}, prolog=LAUGHS),
    "secret file.epub": lambda: epub({"a.xhtml": _PAGE.format("Hello")}, prolog=SECRET_FILE),
    "one chapter a million times.epub": lambda: epub(
        {"a.xhtml": _PAGE.format("x " * 1_000)}, spine='<itemref idref="i0"/>' * 300_000
    ),
    "deep.epub": lambda: epub({"a.xhtml": "<div>" * 100_000 + "x" + "</div>" * 100_000}),
}
