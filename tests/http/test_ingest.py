"""POST /events: exactly a prefix is accepted.

However the body is cut, packed, refused or broken off.
"""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import logging
import random
import socket
import subprocess
import threading
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard
from hypothesis import strategies as st

from backpressure import (
    BufferConfig,
    BufferManager,
    CircuitBreakerConfig,
    Durability,
    FlowControlConfig,
    WhenFull,
)
from backpressure.http import HttpConfig, create_app
from backpressure.http.decompress import _PIECE, UNPACKERS, BadEncoding
from backpressure.testing import FakeClock
from tests.support.buffers import drain
from tests.support.http import AUTH, SCOPE, TOKEN, Client, serving
from tests.support.models import given_in_part
from tests.support.processes import environment, python
from tests.support.threads import until

ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
}


def small(**options: Any) -> BufferManager:
    return BufferManager(BufferConfig(**{"lane_bytes": 1 << 20, **options}))


async def chunks(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def cut(data: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    start = 0
    for size in sizes:
        yield data[start : start + size]
        start += size
    yield data[start:]


# ---------------------------------------------------------------- what is accepted


@pytest.mark.parametrize("encoding", list(ENCODERS))
def test_lines_become_events(encoding: str) -> None:
    buffer = small()
    lines = [b"line %d" % number for number in range(1000)] + [
        b"",
        b"\r",
        "ü".encode(),
        b"\x00\xff",
        b"last",
    ]
    reply = Client(buffer).post(
        "/events?priority=2",
        content=ENCODERS[encoding](b"\n".join(lines)),
        headers={**AUTH, "Content-Encoding": encoding},
    )
    assert reply.status_code == 202
    nbytes = len(b"\n".join(lines))
    assert reply.json() == {
        "accepted": 1005,
        "rejected": 0,
        "reason": None,
        "retry_after": 0.0,
        "first_seq": 0,
        "consumed": nbytes,
        "detail": None,
    }
    assert buffer.stats().lanes[2].accepted == 1005
    assert drain(buffer) == lines


@given_in_part(
    60,
    lines=st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"")), max_size=50),
    sizes=st.lists(st.integers(0, 40), max_size=30),
    encoding=st.sampled_from(list(ENCODERS)),
    push=st.sampled_from([1, 7, 100, 1 << 18]),
    large=st.sampled_from([1, 15, 1 << 17]),
)
def test_it_does_not_matter_how_the_body_is_cut(
    lines: list[bytes], sizes: list[int], encoding: str, push: int, large: int
) -> None:
    buffer = small()
    body = b"".join(line + b"\n" for line in lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backpressure.http.ingest._PUSH", push)
        patch.setattr("backpressure.http.ingest._LARGE", large)
        reply = Client(buffer).post(
            "/events",
            content=chunks(cut(ENCODERS[encoding](body), sizes)),
            headers={**AUTH, "Content-Encoding": encoding},
        )
    assert (reply.status_code, reply.json()["accepted"], reply.json()["consumed"]) == (
        202,
        len(lines),
        len(body),
    )
    assert drain(buffer) == lines


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_several_members_end_to_end(encoding: str) -> None:
    buffer = small()
    pack = ENCODERS[encoding]
    body = b"".join(pack(b"part %d\n" % number) for number in range(20))
    for sizes in ([], [1] * len(body), [len(body) // 2]):
        headers = {**AUTH, "Content-Encoding": encoding}
        assert (
            Client(buffer)
            .post("/events", content=chunks(cut(body, sizes)), headers=headers)
            .json()["accepted"]
            == 20
        )
        assert drain(buffer) == [b"part %d" % number for number in range(20)]


def test_202_means_durable_where_that_was_promised(tmp_path: Path) -> None:
    config = BufferConfig(
        directory=tmp_path / "buffer", lane_bytes=1 << 20, durability=Durability.COMMIT
    )
    with BufferManager(config) as buffer:
        client = Client(buffer)
        assert client.post("/events", content=b"a\nb\nc").status_code == 202
        disk = client.get("/buffer/stats").json()["disk"]
        assert disk["unsynced"] == 0
        assert drain(buffer) == [b"a", b"b", b"c"]


def test_an_empty_body_is_no_event() -> None:
    buffer = small()
    reply = Client(buffer).post("/events")
    assert (reply.status_code, reply.json()["accepted"]) == (202, 0)
    assert buffer.stats().offered == 0


# ---------------------------------------------------------------- what is not, for now


def resend(client: Client, body: bytes, reply: httpx.Response) -> httpx.Response:
    """What a client does after a refusal."""
    return client.post("/events", content=body[reply.json()["consumed"] :])


@pytest.mark.parametrize("encoding", list(ENCODERS))
def test_a_full_buffer_answers_503_and_says_which_prefix_it_took(encoding: str) -> None:
    buffer = BufferManager(BufferConfig(lane_bytes=65536))
    client = Client(buffer)
    lines = [b"%06d" % number + b"." * 94 for number in range(20_000)]
    body = b"\n".join(lines)
    headers = {**AUTH, "Content-Encoding": encoding}
    reply = client.post("/events", content=ENCODERS[encoding](body), headers=headers)
    told = reply.json()
    assert (reply.status_code, told["reason"]) == (503, "full")
    assert int(reply.headers["retry-after"]) >= 1
    assert 300 < told["accepted"] < 1000
    assert told["consumed"] == told["accepted"] * 101
    assert told["rejected"] > 0
    assert f"from byte {told['consumed']:,} on" in told["detail"]
    got = drain(buffer)
    assert got == lines[: told["accepted"]]
    stats = buffer.stats()
    stats.check()
    assert (stats.accepted, stats.rejected) == (told["accepted"], {"full": told["rejected"]})
    while reply.status_code == 503:
        body = body[reply.json()["consumed"] :]
        reply = client.post("/events", content=body)
        got += drain(buffer)
    assert reply.status_code == 202
    assert got == lines


def test_rate_limited_answers_429() -> None:
    clock = FakeClock()
    flow = FlowControlConfig(max_events_per_second=10, burst_size=100)
    buffer = BufferManager(BufferConfig(lane_bytes=1 << 20, flow_control=flow), clock=clock)
    client = Client(buffer)
    body = b"".join(b"%d\n" % number for number in range(150))
    reply = client.post("/events", content=body)
    told = reply.json()
    assert (reply.status_code, told["reason"], told["accepted"]) == (429, "rate", 100)
    assert reply.headers["retry-after"] == "1"
    assert 0 < told["retry_after"] <= 1
    assert resend(client, body, reply).status_code == 429
    clock.advance(20)
    assert resend(client, body, reply).json()["accepted"] == 50
    assert drain(buffer) == [b"%d" % number for number in range(150)]


def test_nothing_overtakes_a_line_that_found_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long line that came in two pieces is refused.

    The short ones after it would fit, and are not part of a prefix.
    """
    monkeypatch.setattr("backpressure.http.ingest._LARGE", 1)
    buffer = BufferManager(BufferConfig(lane_bytes=4096))
    buffer.add_events([b"x" * 1000] * 3)
    reply = Client(buffer).post(
        "/events", content=chunks([b"y" * 700, b"y" * 700 + b"\nshort\nshort\n"])
    )
    assert (reply.status_code, reply.json()["accepted"], reply.json()["consumed"]) == (503, 0, 0)
    assert b"short" not in drain(buffer)


def test_a_rate_of_zero_is_refused_with_a_finite_retry_after() -> None:
    flow = FlowControlConfig(max_events_per_second=0, burst_size=1)
    client = Client(
        BufferManager(BufferConfig(lane_bytes=4096, flow_control=flow), clock=FakeClock())
    )
    reply = client.post("/events", content=b"a\nb\n")
    assert (reply.status_code, reply.json()["retry_after"], reply.headers["retry-after"]) == (
        429,
        None,
        "3600",
    )


def test_emergency_answers_429() -> None:
    clock = FakeClock()
    buffer = BufferManager(BufferConfig(lane_bytes=1 << 16), clock=clock)
    client = Client(buffer)
    client.post("/events?priority=5", content=b"x" * 40_000)
    for _ in range(5):
        buffer._control.flow.record_outcome(0, 100)
    clock.advance(1.1)
    replies = [client.post("/events?priority=5", content=b"x\n" * 100) for _ in range(3)]
    assert [reply.json()["reason"] for reply in replies] == ["emergency"] * 3
    assert {reply.status_code for reply in replies} == {429}


def test_full_behind_an_open_circuit_says_when_the_sink_is_tried_again() -> None:
    breaker = CircuitBreakerConfig(
        law="share", min_requests=1, reset_timeout=17.0, reset_timeout_jitter=0.0
    )
    buffer = BufferManager(
        BufferConfig(lane_bytes=4096, circuit_breaker=breaker), clock=FakeClock()
    )
    client = Client(buffer)
    client.post("/events", content=b"x\n")
    batch = buffer.get_batch()
    assert batch is not None
    batch.nack("the sink is gone")
    reply = client.post("/events", content=b"still accepted\n")
    assert reply.status_code == 202
    reply = client.post("/events", content=b"x" * 100 + b"\n" * 100_000)
    assert (reply.status_code, reply.json()["reason"], reply.headers["retry-after"]) == (
        503,
        "full",
        "17",
    )


def test_a_closed_buffer_answers_503() -> None:
    buffer = small()
    buffer.close(timeout=0)
    reply = Client(buffer).post("/events", content=b"x\n")
    assert (reply.status_code, reply.json()["reason"], reply.json()["accepted"]) == (
        503,
        "closed",
        0,
    )


def test_an_upload_can_wait_for_room() -> None:
    buffer = BufferManager(BufferConfig(lane_bytes=16384))
    lines = [b"%06d" % number + b"." * 100 for number in range(3000)]
    got: list[bytes] = []
    done = threading.Event()

    def consume() -> None:
        while not done.is_set():
            batch = buffer.get_batch(timeout=0.05)
            if batch is not None:
                got.extend(batch)
                batch.ack()

    consumer = threading.Thread(target=consume)
    consumer.start()
    try:
        reply = Client(buffer).post("/events?timeout=30", content=b"\n".join(lines))
        until(lambda: len(got) == len(lines))
    finally:
        done.set()
        consumer.join()
    assert (reply.status_code, reply.json()["accepted"]) == (202, 3000)
    assert got == lines


def test_a_blocking_buffer_does_not_hold_an_upload_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("backpressure.http.ingest.LONGEST_WAIT", 0.05)
    buffer = BufferManager(BufferConfig(lane_bytes=4096, when_full=WhenFull.BLOCK))
    reply = Client(buffer).post("/events", content=b"x" * 100 + b"\n" * 100_000)
    assert (reply.status_code, reply.json()["reason"]) == (503, "full")


@pytest.mark.parametrize(
    "query",
    [
        *("priority=0", "priority=6", "priority=high", "priority=3.5", "priority=1&x=2"),
        *("timeout=-1", "timeout=31", "timeout=nan", "prio=1"),
    ],
)
def test_a_bad_query_changes_nothing(query: str) -> None:
    buffer = small()
    reply = Client(buffer).post(f"/events?{query}", content=b"x\n")
    assert reply.status_code == 422
    assert query.split("&")[-1].partition("=")[0] in reply.json()["detail"]
    assert buffer.stats().offered == 0


# ---------------------------------------------------------------- what is not, ever


def test_an_encoding_may_be_named_in_several_lines() -> None:
    buffer = small()
    client = Client(buffer)
    for values in (["identity", "gzip"], ["gzip", "identity"], [" GZip , identity", ""]):
        headers = [*AUTH.items(), *(("Content-Encoding", value) for value in values)]
        reply = client.post("/events", content=gzip.compress(b"x\n"), headers=headers)
        assert (reply.status_code, drain(buffer)) == (202, [b"x"])
    headers = [*AUTH.items(), ("Content-Encoding", "gzip"), ("Content-Encoding", "zstd")]
    reply = client.post("/events", content=gzip.compress(b"x\n"), headers=headers)
    assert (reply.status_code, drain(buffer)) == (415, [])


def test_the_path_may_end_with_a_slash() -> None:
    buffer = small()
    reply = Client(buffer).post("/events/?priority=2", content=b"x\ny", headers=AUTH)
    assert (reply.status_code, reply.json()["accepted"]) == (202, 2)
    assert drain(buffer) == [b"x", b"y"]


@pytest.mark.parametrize("size", [1, 3, 1 << 20])
def test_zeros_behind_gzip_are_padding(size: int) -> None:
    def unpacked(body: bytes) -> bytes:
        unpacker = UNPACKERS["gzip"]()
        pieces = [
            b"".join(unpacker.unpack(part)) for part in cut(body, [size] * (len(body) // size))
        ]
        unpacker.finish()
        return b"".join(pieces)

    one, two = gzip.compress(b"one\n"), gzip.compress(b"two\n")
    assert unpacked(one + bytes(1000)) == b"one\n"
    assert unpacked(one + bytes(1000) + two + bytes(1)) == b"one\ntwo\n"
    for wrong in (bytes(10), bytes(10) + one, one + bytes(3) + b"x", one + bytes(3) + two[:9]):
        with pytest.raises(BadEncoding):
            unpacked(wrong)


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, zstd", "gzip,gzip"])
def test_other_encodings_are_refused_by_name(encoding: str) -> None:
    buffer = small()
    reply = Client(buffer).post(
        "/events", content=b"x\n", headers={**AUTH, "Content-Encoding": encoding}
    )
    assert (reply.status_code, reply.headers["accept-encoding"]) == (415, "gzip, zstd")
    assert encoding in reply.json()["detail"]
    assert buffer.stats().offered == 0


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_what_is_not_as_packed_as_it_says(encoding: str) -> None:
    buffer = small()
    client = Client(buffer)
    headers = {**AUTH, "Content-Encoding": encoding}
    body = b"".join(b"line %d\n" % number for number in range(10_000))
    packed = ENCODERS[encoding](body)
    for bad in (
        b"",
        b"x",
        b"plain text\n",
        packed[:-1],
        packed[: len(packed) // 2],
        packed + b"x",
        packed[:10] + packed,
    ):
        reply = client.post("/events", content=bad, headers=headers)
        told = reply.json()
        assert (reply.status_code, told["reason"]) == (400, "invalid"), bad[:10]
        assert encoding in told["detail"]
        # What came before the fault may have been accepted already, and then it is a
        # prefix and said.
        assert drain(buffer) == body.splitlines()[: told["accepted"]]


def test_limits_of_size() -> None:
    buffer = small()
    config = HttpConfig(max_body_bytes=10_000, max_unpacked_bytes=50_000, max_event_bytes=1000)
    client = Client(buffer, config=config)
    line = b"x" * 99 + b"\n"

    reply = client.post("/events", content=line * 101)  # announced: refused before anything is read
    assert (reply.status_code, reply.json()["accepted"]) == (413, 0)
    reply = client.post("/events", content=chunks([line] * 101))
    assert reply.status_code == 413
    assert reply.json()["accepted"] == len(drain(buffer))
    for encoding in ("gzip", "zstd"):
        headers = {**AUTH, "Content-Encoding": encoding}
        reply = client.post("/events", content=ENCODERS[encoding](line * 500), headers=headers)
        assert (reply.status_code, reply.json()["accepted"]) == (202, 500)
        assert len(drain(buffer)) == 500
        reply = client.post("/events", content=ENCODERS[encoding](line * 501), headers=headers)
        assert reply.status_code == 413
        assert "50,000" in reply.json()["detail"]
        assert reply.json()["accepted"] == len(drain(buffer))


@pytest.mark.parametrize("large", [1, 1 << 17])
@pytest.mark.parametrize("push", [1, 1 << 18])
def test_the_limit_of_a_line_does_not_depend_on_how_it_comes(
    push: int, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backpressure.http.ingest._LARGE", large)
    monkeypatch.setattr("backpressure.http.ingest._PUSH", push)
    client = Client(small(), config=HttpConfig(max_event_bytes=1000))
    for end in (b"", b"\n", b"\nmore\n"):
        for sizes in ([], [4], [500, 500], [999, 5], [1] * 20):
            good, bad = b"one\n" + b"x" * 1000 + end, b"one\n" + b"x" * 1001 + end
            assert client.post("/events", content=chunks(cut(good, sizes))).status_code == 202
            reply = client.post("/events", content=chunks(cut(bad, sizes)))
            assert reply.status_code == 413
            assert "line 2 has 1,001 bytes or more" in reply.json()["detail"]


def test_a_line_without_end_is_refused_when_it_is_too_long_and_not_at_its_end() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b"x" * 10_000

    client = Client(small(), config=HttpConfig(max_event_bytes=1000))
    assert client.post("/events", content=endless()).status_code == 413
    assert sent < 100


def test_a_line_that_the_lane_can_never_hold() -> None:
    client = Client(BufferManager(BufferConfig(lane_bytes=4096)))
    reply = client.post("/events", content=b"a\n" + b"x" * 10_000 + b"\n")
    assert reply.status_code == 413
    assert "line 2" in reply.json()["detail"]


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize("content", [b"x", b"\n", b"line of some length\n"])
def test_a_bomb_costs_no_memory(encoding: str, content: bytes, in_full: bool) -> None:
    """256 MB (a share: 96) out of some KB: refused by the line's length, the lane's
    room, or the limit, and never held.
    """
    megabytes = range(256 if in_full else 96)
    if encoding == "gzip":
        packer = zlib.compressobj(9, wbits=31)
        body = (
            b"".join(packer.compress(content * (1_000_000 // len(content))) for _ in megabytes)
            + packer.flush()
        )
    else:
        zstd = zstandard.ZstdCompressor(level=3).compressobj()
        body = (
            b"".join(zstd.compress(content * (1_000_000 // len(content))) for _ in megabytes)
            + zstd.flush()
        )
    assert len(body) < 1_500_000
    app = create_app(small(), TOKEN)
    headers = {**AUTH, "Content-Encoding": encoding}

    async def main() -> int:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await client.post("/events", content=b"warm up\n", headers=AUTH)
            tracemalloc.start()
            try:
                reply = await client.post("/events", content=body, headers=headers)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert reply.status_code in (413, 429, 503)
            return peak

    assert asyncio.run(main()) < 24 << 20


def test_zstd_blocks_that_repeat_one_byte_give_no_more_than_some_mib_at_once() -> None:
    """The densest bomb: blocks of 4 bytes, each of which unpacks to 128 KiB."""
    block = (1 << 1 | (128 << 10) << 3).to_bytes(3, "little") + b"x"
    bomb = b"\x28\xb5\x2f\xfd\x00\x38" + block * 16_000
    unpacker = UNPACKERS["zstd"]()
    most = total = 0
    for piece in unpacker.unpack(bomb):
        most, total = max(most, len(piece)), total + len(piece)
        if total > 1 << 28:
            break
    assert total > 1 << 28
    assert most <= 8 << 20


def test_a_zstd_window_is_limited() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=24)
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = packed.compress(random.Random(1).randbytes(1 << 20)) + packed.flush()
    with pytest.raises(BadEncoding, match="8 MiB"):
        list(UNPACKERS["zstd"]().unpack(data))


def test_gzip_steps_are_bounded_and_lose_nothing() -> None:
    for size in (0, 1, _PIECE - 1, _PIECE, _PIECE + 1, 5 * _PIECE):
        data = b"x" * size
        for step in (1 << 20, 7, 1):
            unpacker = UNPACKERS["gzip"]()
            pieces = [
                piece
                for part in cut(gzip.compress(data), [step] * 400)
                for piece in unpacker.unpack(part)
            ]
            unpacker.finish()
            assert b"".join(pieces) == data
            assert all(0 < len(piece) <= _PIECE for piece in pieces)


# ---------------------------------------------------------------- over a socket


def test_a_client_that_stops_sending_is_let_go() -> None:
    buffer = small()
    with serving(buffer, config=HttpConfig(read_timeout=0.2)) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            head = f"POST /events HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n"
            head += "Content-Length: 100\r\n\r\n"
            connection.sendall(head.encode() + b"one\ntwo\n")
            answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408 ")
        # Slow is not silent: three times the limit in all.
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(head.encode())
            for _ in range(10):
                connection.sendall(b"012345678\n")
                time.sleep(0.06)
            answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 202 ")
    assert drain(buffer) == [b"012345678"] * 10


@pytest.mark.parametrize(
    "lane_bytes", [1 << 20, 1 << 16], ids=["waits for its client", "waits for room"]
)
def test_a_server_that_stops_tells_what_was_accepted(
    lane_bytes: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("backpressure.http.server._UPLOAD_GRACE", 0.05)
    buffer = small(lane_bytes=lane_bytes)
    with ExitStack() as cleaning:
        with serving(buffer) as address:
            host, port = address.removeprefix("http://").split(":")
            head = f"POST /events?timeout=30 HTTP/1.1\r\nHost: {host}\r\n"
            head += f"Authorization: Bearer {TOKEN}\r\nContent-Length: 500000\r\n\r\n"
            connection = cleaning.enter_context(
                socket.create_connection((host, int(port)), timeout=30)
            )
            connection.sendall(head.encode() + b"0123456\n" * 50_000)
            until(lambda: buffer.stats().accepted > 0)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 503 ")
    reply = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert reply["reason"] == ("closed" if lane_bytes == 1 << 20 else "full")
    assert (reply["accepted"], reply["consumed"]) == (
        buffer.stats().accepted,
        8 * buffer.stats().accepted,
    )
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_silent_client_leaves_no_cancellation_behind() -> None:
    """The task goes on after the reply.

    Other middleware must not find it half cancelled.
    """
    app = create_app(small(), TOKEN, HttpConfig(read_timeout=0.01))
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async def main() -> None:
        headers = [(b"host", b"localhost"), (b"authorization", AUTH["Authorization"].encode())]
        await app({**SCOPE, "method": "POST", "path": "/events", "headers": headers}, receive, send)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    asyncio.run(asyncio.wait_for(main(), 30))
    assert sent[0]["status"] == 408


def test_a_connection_that_breaks_keeps_what_was_accepted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "backpressure")
    buffer = small(lane_bytes=4 << 20)
    with serving(buffer) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            head = f"POST /events HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n"
            head += "Content-Length: 9999999\r\n\r\n"
            connection.sendall(head.encode() + b"0123456789\n" * 100_000)
            until(lambda: buffer.stats().accepted > 50_000)
        until(lambda: "broke off" in caplog.text)
    events = drain(buffer)
    assert set(events) == {b"0123456789"}


def test_a_refusal_reaches_a_client_that_goes_on_sending() -> None:
    with serving(BufferManager(BufferConfig(lane_bytes=65536))) as address:
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
        body = b"x" * 99 + b"\n"
        for _ in range(2):
            connection.request("POST", "/events", body * 300_000, AUTH)
            reply = connection.getresponse()
            told = reply.read()
            assert (reply.status, b'"reason":"full"' in told) == (503, True)
            assert int(reply.headers["Retry-After"]) >= 1
        connection.close()


SERVER = """
import socket, sys, threading
from backpressure import BufferConfig, BufferManager, FlowControlConfig
from backpressure.http import make_server

flow = FlowControlConfig(max_events_per_second=float("inf"))
buffer = BufferManager(BufferConfig(lane_bytes=1 << 20, flow_control=flow))

def consume():
    while True:
        batch = buffer.get_batch(timeout=None)
        if batch is not None:
            batch.ack()

threading.Thread(target=consume, daemon=True).start()
listener = socket.socket(fileno=int(sys.argv[1]))
make_server(buffer, port=0, token=sys.argv[2]).run(sockets=[listener])
"""


def resident(pid: int, field: str) -> int:
    """The memory of a process in bytes: now (VmRSS), or at most (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field}")


@pytest.mark.platform
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="memory of a process is read from /proc"
)
def test_a_gigabyte_needs_a_few_megabytes(log_lines: bytes, in_full: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, number = listener.getsockname()[1], listener.fileno()
        server = subprocess.Popen(
            python(SERVER, str(number), TOKEN), env=environment(), pass_fds=[number]
        )
    try:

        def up() -> bool:
            assert server.poll() is None
            try:
                return (
                    httpx.post(
                        f"http://127.0.0.1:{port}/events", content=b"warm up\n", headers=AUTH
                    ).status_code
                    == 202
                )
            except httpx.TransportError:
                return False

        until(up)
        block = log_lines[: log_lines.rindex(b"\n") + 1]
        count = (1_000_000_000 if in_full else 150_000_000) // len(block)
        before = resident(server.pid, "VmRSS")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        connection.request(
            "POST",
            "/events?timeout=30",
            (block for _ in range(count)),
            {**AUTH, "Content-Length": str(count * len(block))},
        )
        reply = connection.getresponse()
        told = reply.read()
        connection.close()
        assert reply.status == 202, told
        assert f'"consumed":{count * len(block)}'.encode() in told
        assert resident(server.pid, "VmHWM") - before < 16 << 20
    finally:
        server.kill()
        server.wait()
