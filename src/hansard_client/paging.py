"""Lists, page by page, as many items as are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

PAGE_SIZE = 100


def all_pages(
    call: Callable[[Any], Any], request: Any, field: str, limit: int = 0
) -> Iterator[Any]:
    """Yield the items of all pages, at most `limit` unless that is 0. Changes the request."""
    given = 0
    while True:
        request.page_size = min(PAGE_SIZE, limit - given) if limit else PAGE_SIZE
        page = call(request)
        for item in getattr(page, field):
            yield item
            given += 1
            if given == limit:
                return
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return
