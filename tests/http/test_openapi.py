"""The OpenAPI document is true: schemathesis makes requests from it.

Good and bad ones, with all of its checks.
"""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from backpressure import BufferConfig, BufferManager, FlowControlConfig
from backpressure.http import HttpConfig, create_app
from tests.support.http import AUTH, TOKEN

# An event stream that ends soon, so that it can be tested like any other route.
CONFIG = HttpConfig(stream_seconds=0.02)
HOST = {"Host": "localhost"}


@pytest.fixture(scope="module")
def served() -> Iterator[BufferManager]:
    """A buffer that is never full.

    "Not now" is an answer as well, but here it would hide others.
    """
    flow = FlowControlConfig(max_events_per_second=1e12, burst_size=1 << 50)
    buffer = BufferManager(BufferConfig(lane_bytes=1 << 20, flow_control=flow))
    done = threading.Event()

    def consume() -> None:
        while not done.is_set():
            batch = buffer.get_batch(timeout=0.05)
            if batch is not None:
                batch.ack()

    thread = threading.Thread(target=consume)
    thread.start()
    yield buffer
    done.set()
    thread.join()


@pytest.fixture(scope="module")
def schema(served: BufferManager) -> schemathesis.BaseSchema:
    schema = schemathesis.openapi.from_asgi(
        "/buffer/openapi.json", create_app(served, TOKEN, CONFIG), headers=HOST
    )
    # Each call has the token, which would make a wrong one in the case itself right;
    # one of the checks calls without.
    schema.config.generation.update(with_security_parameters=False)
    return schema


@pytest.fixture(autouse=True)
def metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the Prometheus client /metrics answers 501.

    That is expected there, and a fault anywhere else.
    """
    if find_spec("backpressure.metrics") is None or find_spec("prometheus_client") is None:
        module = types.ModuleType("backpressure.metrics")
        module.exposition = lambda buffer, accept: (b"up 1\n", "text/plain; version=0.0.4")  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "backpressure.metrics", module)


OPERATIONS = [
    (path, method)
    for path, operations in create_app(BufferManager(BufferConfig(lane_bytes=4096)))
    .openapi()["paths"]
    .items()
    for method in operations
]


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_answer_is_as_documented(
    path: str, method: str, mode: GenerationMode, schema: schemathesis.BaseSchema, in_full: bool
) -> None:
    operation = schema[path][method]

    @settings(
        max_examples=40 if in_full else 8, suppress_health_check=list(HealthCheck), deadline=None
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate(headers={**AUTH, **HOST})

    try:
        run()
    except Unsatisfiable:
        # There is no wrong way to ask for what takes no parameters.
        assert mode is GenerationMode.NEGATIVE
        assert method == "get"


def test_all_operations_are_tested() -> None:
    assert len(OPERATIONS) == 11
