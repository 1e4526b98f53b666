"""Random calls: each reply is the one of a model of dicts and lists, on both databases.

What fails is printed as a program and as a blob for `@reproduce_failure`; `--hypothesis-seed` runs
the same examples again.
"""

from __future__ import annotations

import signal
from pathlib import Path

import grpc
import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support.invariants import check_store
from tests.support.server import serve_process
from tests.support.service_client import Client
from tests.support.service_model import QUEUE_MAX
from tests.support.service_reads import ReadRules, ResourceRules


def run(store_url: str, folder: Path, *, examples: int, steps: int) -> None:
    with serve_process(
        *("--listen", "127.0.0.1:0", "--http-listen", "off", "--insecure"),
        *("--data-dir", str(folder), "--store", store_url),
        *("--set", f"queue_max_inputs={QUEUE_MAX}", "--set", "sweep_interval_s=1"),
    ) as served:
        address = served.wait_for("serving")["address"]
        with grpc.insecure_channel(address) as channel:
            rules = (ResourceRules, ReadRules)
            run_state_machine_as_test(
                type("Machine", rules, {"client": Client(channel)}),
                settings=settings(
                    max_examples=examples, stateful_step_count=steps, report_multiple_bugs=False
                ),
            )
        served.send(signal.SIGTERM)
        assert served.wait() == 0
        assert "Traceback" not in served.log
    check_store(store_url, folder)


def test_replies_equal_the_models(store_url: str, tmp_path: Path) -> None:
    run(store_url, tmp_path, examples=40, steps=50)


@pytest.mark.soak
def test_replies_equal_the_models_for_long(store_url: str, tmp_path: Path) -> None:
    run(store_url, tmp_path, examples=400, steps=60)
