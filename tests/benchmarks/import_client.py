"""Imports what plain serving needs, but nothing of ours except the messages; says so, and ends.

Arguments: what else is imported.
"""

from __future__ import annotations

import importlib
import sys

NEEDED = (
    # The wire.
    *("grpc.aio", "grpc_status.rpc_status", "grpc_health.v1.health_pb2_grpc"),
    *("grpc_reflection.v1alpha.reflection", "protovalidate", "uvloop"),
    *(
        f"hansard.v1.{service}_service_pb2_grpc"
        for service in ("access", "agent", "artifact", "corpus", "event", "session", "turn")
    ),
    # The store, and the bytes of artifacts.
    *("sqlalchemy", "obstore.store", "puremagic"),
    # The command, its settings, its log, patterns.
    *("typer", "pydantic_settings", "structlog", "re2"),
)

if __name__ == "__main__":
    for name in (*NEEDED, *sys.argv[1:]):
        importlib.import_module(name)
    sys.stdout.write("imported\n")
    sys.stdout.flush()
