"""Uploads of 8 MB beside a route of the same server that only reads and drops the body:
uvicorn in a process of its own.

A uvicorn process is one thread, so what it can take per second is what fits into a
second of its processor time. That is compared, the median of many turns, each way in
turn: it is nearly the same on a busy machine. Elapsed times are printed beside.
"""

from __future__ import annotations

import http.client
import json
import socket
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator

import pytest
import zstandard
from pytest_benchmark.fixture import BenchmarkFixture

ROUNDS = 40
LINE = (
    b"83.149.9.216 - - [17/May/2015:10:05:03 +0000] "
    b'"GET /presentations/logstash-monitorama-2013/images/kibana-search.png HTTP/1.1" 200 203023 '
    b'"http://semicomplete.com/presentations/" "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_9_1)"\n'
)
LINES = 8_000_000 // len(LINE)
BODY = LINE * LINES
TOKEN = {"Authorization": "Bearer bench"}

SERVER = """
import sys, time
from fastapi import FastAPI, Request
from backpressure import BufferConfig, BufferManager, FlowControlConfig
from backpressure.http import make_server

flow = FlowControlConfig(max_events_per_second=float("inf"))
buffer = BufferManager(BufferConfig(flow_control=flow))
server = make_server(buffer, port=int(sys.argv[1]), token="bench")
outer = FastAPI()

@outer.post("/drop")
async def drop(request: Request) -> int:
    nbytes = 0
    async for piece in request.stream():
        nbytes += len(piece)
    return nbytes

@outer.post("/seconds")
async def seconds() -> float:
    return time.process_time()

@outer.post("/drain")
async def drain() -> int:
    events = 0
    while (batch := buffer.get_batch()) is not None:
        events += len(batch)
        batch.ack()
    return events

outer.mount("/", server.config.app)
server.config.app = outer
server.run()
"""


class Server:
    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self.connection = connection

    def post(self, path: str, body: bytes = b"", **headers: str) -> object:
        self.connection.request("POST", path, body, {**TOKEN, **headers})
        reply = self.connection.getresponse()
        told = reply.read()
        assert reply.status in (200, 202), told
        return json.loads(told)

    def cost(self, work: Callable[[], object]) -> tuple[float, float]:
        """Seconds of the server's processor, and seconds elapsed."""
        before = float(str(self.post("/seconds")))
        begin = time.perf_counter()
        work()
        elapsed = time.perf_counter() - begin
        return float(str(self.post("/seconds"))) - before, elapsed

    def upload(self, body: bytes, encoding: str) -> None:
        reply = self.post("/events", body, **{"Content-Encoding": encoding})
        assert isinstance(reply, dict)
        assert (reply["accepted"], reply["consumed"]) == (LINES, len(BODY))

    def drop(self) -> None:
        assert self.post("/drop", BODY) == len(BODY)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(port)])
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        yield Server(connection)
        connection.close()
    finally:
        process.kill()
        process.wait()


def packed(encoding: str) -> bytes:
    if encoding == "gzip":
        packer = zlib.compressobj(6, wbits=31)
        return packer.compress(BODY) + packer.flush()
    return zstandard.compress(BODY) if encoding == "zstd" else BODY


# Of the speed of dropping the same lines unpacked. gzip is bound by zlib, whose speed
# differs by build: no limit of ours.
@pytest.mark.parametrize(("encoding", "limit"), [("identity", 0.6), ("zstd", 0.6), ("gzip", 0.1)])
def test_upload(benchmark: BenchmarkFixture, server: Server, encoding: str, limit: float) -> None:
    body = packed(encoding)

    def ours() -> None:
        server.upload(body, encoding)

    def drain() -> None:
        assert server.post("/drain") == LINES

    benchmark.pedantic(ours, teardown=lambda *_: drain(), rounds=5)
    server.drop()
    if benchmark.disabled:
        return
    our_turns, their_turns = [], []
    for _ in range(ROUNDS):
        our_turns.append(server.cost(ours))
        drain()
        their_turns.append(server.cost(server.drop))
    our_cost, our_time = (statistics.median(column) for column in zip(*our_turns, strict=True))
    their_cost, their_time = (
        statistics.median(column) for column in zip(*their_turns, strict=True)
    )
    measured = their_cost / our_cost
    benchmark.extra_info.update(yardstick="read and drop", ratio=round(measured, 3), limit=limit)
    print(
        f"\n{encoding}: {measured:.2f} of the speed of dropping, at least {limit} "
        f"({our_cost * 1e3:.1f} ms of the server's time; by the clock "
        f"{their_time / our_time:.2f}: {our_time * 1e3:.1f} and "
        f"{their_time * 1e3:.1f} ms)"
    )
    assert measured >= limit
