"""Images: what kind one is and how large, from its first bytes alone."""

from __future__ import annotations

import struct

from hansard_server.domain.values import dataclass

HEAD_BYTES = 64 * 1024
"""So much of an image's beginning says what it is: a JPEG's size may stand behind its metadata."""
_PNG = b"\x89PNG\r\n\x1a\n"
# https://www.w3.org/Graphics/JPEG/itu-t81.pdf, table B.1: the frame headers.
_JPEG_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_WEBP_EXTENDED_BYTES = 30


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What an image is; width and height in pixels."""

    mime_type: str
    width: int
    height: int


def read_image_info(head: bytes) -> ImageInfo | None:
    """Return what the bytes that a file begins with say; None for what is no image of ours.

    PNG, JPEG, GIF and WebP are known, as models that can see take them.
    """
    for read in (_png, _gif, _webp, _jpeg):
        try:
            info = read(head)
        except (struct.error, IndexError):
            return None
        if info is not None:
            return info if info.width and info.height else None
    return None


def _png(head: bytes) -> ImageInfo | None:
    if not head.startswith(_PNG) or head[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", head, 16)
    return ImageInfo("image/png", width, height)


def _gif(head: bytes) -> ImageInfo | None:
    if head[:6] not in {b"GIF87a", b"GIF89a"}:
        return None
    width, height = struct.unpack_from("<HH", head, 6)
    return ImageInfo("image/gif", width, height)


def _webp(head: bytes) -> ImageInfo | None:
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return None
    # https://developers.google.com/speed/webp/docs/riff_container
    kind = head[12:16]
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", head, 26)
        return ImageInfo("image/webp", width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L" and head[20] == 0x2F:  # noqa: PLR2004 - the signature of the format
        (bits,) = struct.unpack_from("<I", head, 21)
        return ImageInfo("image/webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8X" and len(head) >= _WEBP_EXTENDED_BYTES:
        width = int.from_bytes(head[24:27], "little") + 1
        height = int.from_bytes(head[27:30], "little") + 1
        return ImageInfo("image/webp", width, height)
    return None


def _jpeg(head: bytes) -> ImageInfo | None:
    if not head.startswith(b"\xff\xd8"):
        return None
    at = 2
    while True:
        if head[at] != 0xFF:  # noqa: PLR2004 - every marker begins so
            return None
        marker = head[at + 1]
        if marker == 0xFF:  # noqa: PLR2004 - a fill byte
            at += 1
        elif marker in _JPEG_ALONE:
            at += 2
        elif marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", head, at + 5)
            return ImageInfo("image/jpeg", width, height)
        else:
            (length,) = struct.unpack_from(">H", head, at + 2)
            at += 2 + max(length, 2)
