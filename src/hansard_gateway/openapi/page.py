"""A page that shows the API document: plain HTML, without scripts and without other servers."""

from __future__ import annotations

import json
from functools import cache
from html import escape
from typing import Any, Final

from hansard_gateway.openapi.document import document

HEADERS: Final = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
}
_STYLE: Final = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
summary { cursor: pointer; padding: .3rem 0; }
details { border-bottom: 1px solid #8884; }
code, pre, .path { font-family: ui-monospace, monospace; font-size: 13px; }
pre { overflow: auto; background: #8881; padding: .7rem; border-radius: 4px; max-height: 30rem; }
.method { display: inline-block; width: 4.5rem; font-weight: 600; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .2rem .6rem .2rem 0; }
.said { color: GrayText; }
"""


@cache
def page() -> str:
    """Return the page."""
    told = document()
    groups: dict[str, list[str]] = {}
    for path, methods in told["paths"].items():
        for method, operation in methods.items():
            tag = operation.get("tags", ["Health"])[0]
            groups.setdefault(tag, []).append(_operation(path, method, operation))
    parts = [f"<h2>{escape(tag)}</h2>{''.join(shown)}" for tag, shown in sorted(groups.items())]
    schemas = [
        f"<details id='{escape(name)}'><summary><code>{escape(name)}</code></summary>"
        f"{_json(schema)}</details>"
        for name, schema in told["components"]["schemas"].items()
    ]
    info = told["info"]
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{escape(info['title'])} HTTP API</title><style>{_STYLE}</style>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>"
        f"<p>{escape(info['description'])} <a href='/openapi.json'>openapi.json</a></p>"
        f"{''.join(parts)}<h2>Schemas</h2>{''.join(schemas)}</html>"
    )


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{escape(each['name'])}</code><td>{escape(each['in'])}"
        f"<td>{escape(each.get('description', ''))}"
        for each in operation.get("parameters", ())
    ]
    parameters = f"<table>{''.join(rows)}</table>" if rows else ""
    bodies = [
        f"<h4>Body: {escape(kind)}</h4>{_json(content['schema'])}"
        for kind, content in operation.get("requestBody", {}).get("content", {}).items()
    ]
    answers = [
        f"<tr><td>{escape(status)}<td>{escape(answer['description'])}<td>{_links(answer)}"
        for status, answer in operation["responses"].items()
    ]
    return (
        f"<details><summary><span class='method'>{escape(method.upper())}</span>"
        f"<span class='path'>{escape(path)}</span>"
        f" <span class='said'>{escape(operation['summary'])}</span></summary>"
        f"<p>{escape(operation.get('description', ''))}</p>{parameters}{''.join(bodies)}"
        f"<h4>Answers</h4><table>{''.join(answers)}</table></details>"
    )


def _links(answer: dict[str, Any]) -> str:
    shown = []
    for kind, content in answer.get("content", {}).items():
        ref = content["schema"].get("$ref", "").rpartition("/")[2]
        link = f"<a href='#{escape(ref)}'>{escape(ref)}</a>" if ref else ""
        shown.append(f"{escape(kind)} {link}")
    return "<br>".join(shown)


def _json(schema: Any) -> str:
    return f"<pre>{escape(json.dumps(schema, indent=2))}</pre>"
