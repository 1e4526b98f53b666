"""A client that reads the newest 100 events of a session and appends 3, again and again: what a
runner of google-adk does in a turn. Arguments and lines as load_client's; one call at a time.
"""

from __future__ import annotations

import json
import secrets
import statistics
import sys
import time
from itertools import count

import grpc

from hansard.v1 import event_service_pb2_grpc, paging_pb2
from tests.benchmarks import messages


def main(address: str, session: str, key: str) -> None:
    """Run whenever told to, until the input ends."""
    client, numbers = secrets.token_hex(4), count()
    metadata = (("authorization", f"Bearer {key}"),)
    newest = messages.list_events(session)
    newest.order = paging_pb2.SORT_ORDER_DESCENDING
    with grpc.insecure_channel(address) as channel:
        stub = event_service_pb2_grpc.EventServiceStub(channel)
        for line in sys.stdin:
            times: list[float] = []
            started, cpu = time.perf_counter(), time.process_time()
            while (begun := time.perf_counter()) - started < float(line.split()[0]):
                page = stub.ListEvents(newest, metadata=metadata)
                assert len(page.events) == messages.PAGE
                for _ in range(3):
                    request = messages.append(session, f"{client}-{next(numbers)}")
                    stub.AppendEvents(request, metadata=metadata)
                times.append((time.perf_counter() - begun) * 1_000)
            answer = {
                "calls": len(times),
                "seconds": time.perf_counter() - started,
                "cpu_seconds": time.process_time() - cpu,
                "p50_ms": statistics.median(times),
            }
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:4])
