"""The images that a history shows, read from the session's files."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import cast

from hansard.v1 import event_pb2
from hansard_server.agents.api import SessionFiles
from hansard_server.agents.models.providers.messages import Image
from hansard_server.agents.models.providers.rules import ProviderRules
from hansard_server.agents.tools.images import HEAD_BYTES, read_image_info
from hansard_server.domain.errors import ArtifactNotFound
from hansard_server.domain.limits import MIB

IMAGES_MAX = 20
"""So many images a request has at most; of more the newest."""
IMAGES_MAX_BYTES = 20 * MIB
"""And so many bytes of them together."""


async def load_images(
    history: Sequence[event_pb2.Event], files: SessionFiles | None, rules: ProviderRules
) -> dict[str, Image]:
    """Return the newest images that the model has looked at, by artifact id.

    Nothing for models that can't see. Raises StoreUnavailable.
    """
    images: dict[str, Image] = {}
    if files is None or not rules.sees_images:
        return images
    looked_at = [e.image_read.artifact_id for e in history if e.HasField("image_read")]
    room = IMAGES_MAX_BYTES
    for artifact_id in dict.fromkeys(reversed(looked_at)):
        if len(images) == IMAGES_MAX:
            break
        image = await _load(files, artifact_id, room)
        if image is not None:
            images[artifact_id] = image
            room -= len(image.data)
    return images


async def _load(files: SessionFiles, artifact_id: str, max_bytes: int) -> Image | None:
    """Return the image; None when it is gone, no image, or too large."""
    try:
        artifact = await files.get_file(artifact_id)
        if artifact.size_bytes > max_bytes:
            return None
        chunks = cast("AsyncGenerator[bytes]", files.read_file(artifact_id))
        async with aclosing(chunks):
            data = b"".join([chunk async for chunk in chunks])
    except ArtifactNotFound:
        return None
    info = read_image_info(data[:HEAD_BYTES])
    return None if info is None else Image(info.mime_type, data)
