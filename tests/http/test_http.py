"""The HTTP app: what it shows, what it changes, and what it refuses.

Uploads and streams have files of their own.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import types
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from backpressure import (
    AdaptiveBatchConfig,
    Batch,
    BufferConfig,
    BufferManager,
    CircuitBreakerConfig,
    ConfigError,
    EventType,
    FlowControlConfig,
    SinkGone,
    SinkUnavailable,
    Tuned,
)
from backpressure.http import DEFAULT_HOST, HttpConfig, create_app, make_server
from backpressure.http.models import plain
from tests.support.http import AUTH, TOKEN, Client, request, serving
from tests.support.threads import until

SMALL = BufferConfig(lane_bytes=4096)
CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("/buffer/flow-control/rate", {"rate": 1234.5}),
    ("/buffer/batch-size", {"size": 2345}),
    ("/buffer/circuit-breaker/reset", {}),
]


@pytest.fixture
def buffer() -> BufferManager:
    return BufferManager(SMALL)


@pytest.fixture
def client(buffer: BufferManager) -> Client:
    return Client(buffer)


def settings(buffer: BufferManager) -> tuple[object, ...]:
    stats = buffer.stats()
    return (
        stats.flow_control.rate_limit,
        stats.flow_control.rate_in_force,
        stats.batching.batch_size,
        stats.circuit_breaker.state,
        stats.circuit_breaker.generation,
        stats.offered,
    )


# ---------------------------------------------------------------- what it shows


def test_stats_are_the_buffers_own(buffer: BufferManager, client: Client) -> None:
    buffer.add_events([b"a", b"b"], priority=1)
    buffer.add_events([b"x" * 1000] * 6, priority=4)
    shown = client.get("/buffer/stats").json()
    own = plain(buffer.stats())
    assert shown.keys() == own.keys()
    for name in ("offered", "accepted", "rejected", "resident", "lanes", "capacity_bytes"):
        for lane in (*shown["lanes"].values(), *own["lanes"].values()):
            lane["oldest_age"] = 0
        assert shown[name] == own[name]
    assert shown["lanes"]["4"]["rejected"] == {"full": 2}
    assert shown["circuit_breaker"]["state"] == "closed"


def test_infinity_is_null(buffer: BufferManager) -> None:
    config = BufferConfig(
        lane_bytes=4096, flow_control=FlowControlConfig(max_events_per_second=float("inf"))
    )
    shown = Client(BufferManager(config)).get("/buffer/flow-control")
    assert shown.status_code == 200
    assert shown.json()["rate_limit"] is None


def test_backpressure_and_flow_control(buffer: BufferManager, client: Client) -> None:
    shown = client.get("/buffer/backpressure").json()
    assert (shown["active"], shown["pressure"], shown["backpressure_seconds"]) == (False, 0.0, 0.0)
    shown = client.get("/buffer/flow-control").json()
    assert shown["rate_limit"] == 20_000_000
    assert shown["refused"] == {"rate": 0, "share": 0, "delay": 0, "emergency": 0}


def test_health_knows_of_the_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = BufferManager()
    client = Client(buffer)

    class Sink:
        name = "the store"
        error: Exception = SinkUnavailable("maintenance")

        def send(self, batch: Batch) -> None:
            raise self.error

        def close(self) -> None:
            pass

    delivery = buffer.deliver_to(Sink())
    buffer.add_events([b"x"])
    until(lambda: delivery.stats().failing_for)
    assert client.get("/buffer/health").json()["status"] == "ok", "a hiccup"
    monkeypatch.setattr("backpressure.http.health._FAILING_SECONDS", 0.0)
    shown = client.get("/buffer/health").json()
    assert shown["status"] == "degraded"
    assert shown["ready"]
    [reason] = shown["reasons"]
    assert reason.startswith("the sink the store has failed for ")
    assert reason.endswith(": SinkUnavailable: maintenance")
    monkeypatch.setattr(Sink, "error", SinkGone("torn down"))
    buffer.flush()
    until(lambda: not delivery.running)
    assert "delivery to the store has ended: torn down" in client.get("/buffer/health").text
    shown = client.get("/buffer/stats").json()["delivery"]
    assert (shown["sink"], shown["running"], shown["error"]) == ("the store", False, "torn down")


def test_health_says_whether_and_why_not() -> None:
    breaker = CircuitBreakerConfig(min_requests=1)
    buffer = BufferManager(BufferConfig(lane_bytes=4096, circuit_breaker=breaker))
    client = Client(buffer)
    assert client.get("/buffer/health").json() == {
        "status": "ok",
        "live": True,
        "ready": True,
        "reasons": [],
    }
    buffer.add_events([b"x"])
    batch = buffer.get_batch()
    assert batch is not None
    batch.nack("no")
    shown = client.get("/buffer/health")
    assert (shown.status_code, shown.json()["status"]) == (200, "degraded")
    assert "circuit is open" in shown.json()["reasons"][0]
    # A flood of the least urgent is no reason to stop sending.
    buffer.add_events([b"x" * 900] * 5, priority=5)
    buffer.add_events([b"x" * 60] * 60, priority=5)
    shown = client.get("/buffer/health")
    assert shown.status_code == 200
    assert any("lane 5 is full" in reason for reason in shown.json()["reasons"])
    for _ in range(3):
        buffer.add_events([b"x" * 900] * 5)
        buffer.add_events([b"x" * 60] * 60)
    shown = client.get("/buffer/health")
    assert (shown.status_code, shown.json()["ready"]) == (503, False)
    assert "lane 3 is full" in shown.json()["reasons"][0]
    assert client.get("/buffer/health?probe=live").status_code == 200
    assert client.get("/buffer/health?probe=dead").status_code == 422
    buffer.close(timeout=0)
    assert client.get("/buffer/health").json()["reasons"][0] == "the buffer is closed"
    assert client.get("/buffer/health").status_code == 503


def test_metrics_come_from_the_metrics_module(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("backpressure.metrics")
    asked = []

    def exposition(buffer: BufferManager, accept: str) -> tuple[bytes, str]:
        asked.append(accept)
        return b"backpressure_up 1\n", "text/plain; version=0.0.4; charset=utf-8"

    module.exposition = exposition  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "backpressure.metrics", module)
    shown = client.get("/metrics", headers={"Accept": "text/plain"})
    assert (shown.status_code, shown.content) == (200, b"backpressure_up 1\n")
    assert shown.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert asked == ["text/plain"]


def test_metrics_say_what_is_missing(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "backpressure.metrics", None)
    shown = client.get("/metrics")
    assert shown.status_code == 501
    assert "forebay[prometheus]" in shown.json()["detail"]


# ---------------------------------------------------------------- what it changes


def test_changes_are_in_force_at_once(
    buffer: BufferManager, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "backpressure.audit")
    told: list[Tuned] = []
    buffer.on(EventType.TUNED, told.append)
    replies = [client.post(url, json=body).json() for url, body in CHANGES]
    assert replies == [
        {"setting": "flow_control_rate", "old": 20_000_000, "new": 1234.5},
        {"setting": "batch_size", "old": 50_000, "new": 2345},
        {"setting": "circuit_breaker", "old": "CLOSED", "new": "CLOSED"},
    ]
    shown = client.get("/buffer/stats").json()
    assert shown["flow_control"]["rate_limit"] == shown["flow_control"]["rate_in_force"] == 1234.5
    assert shown["batching"]["batch_size"] == 2345
    assert [(one.setting, one.old, one.new) for one in told] == [
        tuple(reply.values()) for reply in replies
    ]
    assert {one.by for one in told} == {"http 192.0.2.7:4711"}
    lines = [
        record.getMessage() for record in caplog.records if record.name == "backpressure.audit"
    ]
    assert lines[0] == "flow_control_rate: 20000000.0 -> 1234.5, by http 192.0.2.7:4711"
    assert len(lines) == 3


def test_a_whole_number_is_one_however_it_is_written(buffer: BufferManager, client: Client) -> None:
    reply = client.post(
        "/buffer/batch-size",
        content=b'{"size": 5e3}',
        headers={**AUTH, "Content-Type": "application/json"},
    )
    assert (reply.status_code, buffer.stats().batching.batch_size) == (200, 5000)


def test_a_reset_closes_the_circuit() -> None:
    buffer = BufferManager(
        BufferConfig(lane_bytes=4096, circuit_breaker=CircuitBreakerConfig(min_requests=1))
    )
    buffer.add_events([b"x"])
    batch = buffer.get_batch()
    assert batch is not None
    batch.nack()
    assert buffer.is_circuit_breaker_open()
    reply = Client(buffer).post("/buffer/circuit-breaker/reset")
    assert (reply.status_code, reply.json()["old"], reply.json()["new"]) == (200, "OPEN", "CLOSED")
    assert not buffer.is_circuit_breaker_open()


@pytest.mark.parametrize(
    ("url", "body", "status", "says"),
    [
        (
            "/buffer/flow-control/rate",
            '{"rate": -1}',
            422,
            "rate: Input should be greater than or equal to 0",
        ),
        ("/buffer/flow-control/rate", '{"rate": 1e13}', 422, "rate: "),
        ("/buffer/flow-control/rate", '{"rate": NaN}', 422, "finite"),
        ("/buffer/flow-control/rate", '{"rate": Infinity}', 422, "rate: "),
        ("/buffer/flow-control/rate", '{"rate": 1e999}', 422, "rate: "),
        ("/buffer/flow-control/rate", '{"rate": "5"}', 422, "rate: Input should be a valid number"),
        (
            "/buffer/flow-control/rate",
            '{"rate": true}',
            422,
            "rate: Input should be a valid number",
        ),
        ("/buffer/flow-control/rate", '{"rate": null}', 422, "rate: "),
        (
            "/buffer/flow-control/rate",
            '{"rate": 5, "burst": 1}',
            422,
            "burst: Extra inputs are not permitted",
        ),
        ("/buffer/flow-control/rate", "{}", 422, "rate: Field required"),
        ("/buffer/flow-control/rate", "[5]", 422, "body: "),
        ("/buffer/flow-control/rate", "5", 422, "body: "),
        ("/buffer/flow-control/rate", "", 422, "body: Field required"),
        ("/buffer/flow-control/rate", '{"rate": 5', 422, "not JSON"),
        ("/buffer/flow-control/rate", '{"rate": 5}' + " " * 5000, 413, "at most 4,096 bytes"),
        (
            "/buffer/batch-size",
            '{"size": 999}',
            422,
            "size: must be an int from 1,000 to 100,000, not 999",
        ),
        ("/buffer/batch-size", '{"size": 100001}', 422, "size: must be"),
        ("/buffer/batch-size", '{"size": 5000.5}', 422, "size: "),
        ("/buffer/batch-size", '{"size": "5000"}', 422, "size: "),
        ("/buffer/batch-size", '{"size": true}', 422, "size: "),
        ("/buffer/batch-size", '{"size": 1e400}', 422, "size: "),
        (
            "/buffer/circuit-breaker/reset",
            '{"force": true}',
            422,
            "force: Extra inputs are not permitted",
        ),
        ("/buffer/circuit-breaker/reset", '"now"', 422, "body: "),
    ],
)
def test_bad_input_says_what_was_wrong_and_changes_nothing(
    url: str, body: str, status: int, says: str, buffer: BufferManager, client: Client
) -> None:
    before = settings(buffer)
    reply = client.post(url, content=body, headers={**AUTH, "Content-Type": "application/json"})
    assert (reply.status_code, settings(buffer)) == (status, before)
    assert says in reply.json()["detail"]


def test_a_deep_body_is_refused(buffer: BufferManager, client: Client) -> None:
    """Python before 3.12 runs out of stack here and others out of input.

    Both are the client's fault.
    """
    before = settings(buffer)
    reply = client.post(
        "/buffer/flow-control/rate",
        content=b"[" * 4000,
        headers={**AUTH, "Content-Type": "application/json"},
    )
    assert reply.status_code in (400, 422)
    assert settings(buffer) == before


def test_control_bodies_are_json_only(buffer: BufferManager, client: Client) -> None:
    before = settings(buffer)
    for content_type in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
    ):
        for url, body in CHANGES:
            headers = {**AUTH, "Content-Type": content_type}
            reply = client.post(url, content=json.dumps(body), headers=headers)
            assert (reply.status_code, settings(buffer)) == (415, before), (url, content_type)
    charset = {**AUTH, "Content-Type": "Application/JSON; charset=utf-8"}
    assert client.post(CHANGES[0][0], content='{"rate": 7}', headers=charset).status_code == 200


def test_a_body_without_a_length_is_limited_as_well(buffer: BufferManager, client: Client) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"rate": 7}'
        for _ in range(100):
            yield b" " * 100

    headers = {**AUTH, "Content-Type": "application/json"}
    before = settings(buffer)
    assert client.post(CHANGES[0][0], content=chunks(), headers=headers).status_code == 413
    assert settings(buffer) == before


# ---------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("url", "body"), [*CHANGES, ("/events", None), ("/buffer/stats", None), ("/nowhere", {})]
)
def test_changes_need_the_token(url: str, body: object, buffer: BufferManager) -> None:
    before = settings(buffer)
    content = b"line" if body is None else json.dumps(body).encode()
    base = {"Content-Type": "application/json"}
    client = Client(buffer)
    for wrong in (
        {},
        {"Authorization": ""},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN.upper()}"},
        {"Authorization": "Bearer \xff".encode("latin-1")},
    ):
        reply = client.post(url, content=content, headers={**base, **wrong})
        assert (reply.status_code, settings(buffer)) == (401, before), wrong
        assert reply.headers["www-authenticate"] == "Bearer"
    twice = [("Content-Type", "application/json"), *([("Authorization", f"Bearer {TOKEN}")] * 2)]
    assert client.post(url, content=content, headers=twice).status_code == 401
    for headers in (base, {**base, **AUTH}):
        reply = Client(buffer, token=None).post(url, content=content, headers=headers)
        assert (reply.status_code, settings(buffer)) == (403, before)
        assert "without a token" in reply.json()["detail"]
    for method in ("PUT", "DELETE", "PATCH"):
        assert request(client.app, method, url, headers={}).status_code == 401
        assert request(client.app, method, url).status_code in (404, 405)


def test_the_scheme_of_the_token_is_not_case_sensitive(client: Client) -> None:
    assert (
        client.post(CHANGES[2][0], headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200
    )


def test_tokens_are_compared_in_constant_time(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides have the same length, whatever was sent.

    Only compare_digest looks at them.
    """
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return True

    monkeypatch.setattr("backpressure.http.guard.hmac.compare_digest", compare)
    assert client.post(CHANGES[2][0], headers={"Authorization": "Bearer x"}).status_code == 200
    assert [(len(a), len(b)) for a, b in compared] == [(32, 32)]


@pytest.mark.parametrize("token", ["", "with space", "ümlaut", "line\nbreak", 5])
def test_a_token_that_no_client_could_send_is_refused(token: Any, buffer: BufferManager) -> None:
    with pytest.raises(ConfigError, match="token"):
        create_app(buffer, token)


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("localhost", True),
        ("LocalHost:8127", True),
        ("127.0.0.1:80", True),
        ("[::1]:8127", True),
        ("[::1]", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("evil.example:8127", False),
        ("localhost@evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        ("localhost:80:90", False),
        ("::1", False),
    ],
)
def test_hosts_are_checked(host: str, answered: bool, client: Client) -> None:
    """A page whose name was pointed at this machine sends its own name as Host."""
    for method, url in (
        ("GET", "/buffer/stats"),
        ("GET", "/buffer/"),
        ("POST", "/buffer/circuit-breaker/reset"),
    ):
        reply = request(client.app, method, url, headers={**AUTH, "Host": host})
        assert reply.status_code == (200 if answered else 421), (method, url)
    twice = [("Host", "localhost"), ("Host", "evil.example"), *AUTH.items()]
    assert client.post("/buffer/circuit-breaker/reset", headers=twice).status_code == 421


def test_other_hosts_can_be_allowed(buffer: BufferManager) -> None:
    client = Client(buffer, config=HttpConfig(allowed_hosts=("*.example.com", "buffer")))
    got = [
        client.get("/buffer/stats", headers={"Host": host}).status_code
        for host in (
            "a.example.com",
            "A.B.Example.com:1",
            "buffer",
            "example.com",
            "localhost",
            "aexample.com",
        )
    ]
    assert got == [200, 200, 200, 421, 421, 421]
    anywhere = Client(buffer, config=HttpConfig(allowed_hosts=("*",)))
    assert anywhere.get("/buffer/stats", headers={"Host": "whatever"}).status_code == 200


@pytest.mark.parametrize(
    ("origin", "answered"),
    [
        ("http://localhost:8127", True),
        ("https://localhost:8127", True),
        ("https://ops.example.com", True),
        ("http://ops.example.com", False),
        ("http://localhost", False),
        ("http://localhost:3000", False),
        ("https://evil.example", False),
        ("null", False),
        ("localhost:8127", False),
        ("ftp://localhost:8127", False),
    ],
)
def test_origins_are_checked(origin: str, answered: bool, buffer: BufferManager) -> None:
    client = Client(buffer, config=HttpConfig(allowed_origins=("https://ops.example.com",)))
    before = settings(buffer)
    headers = {**AUTH, "Host": "localhost:8127", "Origin": origin}
    assert client.get("/buffer/stats", headers=headers).status_code == (200 if answered else 403)
    assert client.post(CHANGES[0][0], json=CHANGES[0][1], headers=headers).status_code == (
        200 if answered else 403
    )
    assert (settings(buffer) == before) != answered


def test_refusals_are_in_the_audit_log_but_do_not_flood_it(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        client.post("/buffer/batch-size", json={"size": 5000}, headers={})
    lines = [
        record.getMessage() for record in caplog.records if record.name == "backpressure.audit"
    ]
    assert 1 <= len(lines) <= 5
    assert lines[0].startswith(
        "refused POST '/buffer/batch-size', by http 192.0.2.7:4711: send the token"
    )


def test_every_answer_keeps_browsers_from_surprises(client: Client) -> None:
    for reply in (
        client.get("/buffer/stats"),
        client.get("/nowhere"),
        client.get("/buffer/", headers={"Host": "evil"}),
    ):
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert "unsafe" not in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in reply.headers
    assert client.get("/buffer/stats").headers["cache-control"] == "no-store"


# ---------------------------------------------------------------- how it is run


def test_head_is_a_get_without_a_body(client: Client) -> None:
    for url in ("/buffer/health", "/buffer/stats", "/buffer/", "/metrics", "/buffer/openapi.json"):
        reply = request(client.app, "HEAD", url)
        assert (reply.status_code, reply.content) == (client.get(url).status_code, b""), url
        assert int(reply.headers["content-length"]) > 0
    assert request(client.app, "HEAD", "/buffer/nothing").status_code == 404
    assert request(client.app, "HEAD", "/events").status_code == 405


def test_head_opens_no_stream(buffer: BufferManager) -> None:
    with serving(buffer) as address:
        for _ in range(100):
            reply = httpx.head(f"{address}/buffer/events")
            assert reply.status_code == 200
            assert reply.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("/buffer/health", "GET, HEAD, OPTIONS"),
        ("/buffer/", "GET, HEAD, OPTIONS"),
        ("/events", "OPTIONS, POST"),
        ("/buffer/batch-size", "OPTIONS, POST"),
    ],
)
def test_options_names_the_methods(url: str, allowed: str, client: Client) -> None:
    reply = request(client.app, "OPTIONS", url)
    assert (reply.status_code, reply.content, reply.headers["allow"]) == (204, b"", allowed)
    refused = request(client.app, "DELETE", url)
    assert (refused.status_code, refused.headers["allow"]) == (405, allowed)
    assert request(client.app, "OPTIONS", "/nothing").status_code == 404


def test_a_path_that_is_none_is_not_told_of_json(client: Client) -> None:
    for url, status in (("/event", 404), ("/buffer/stats", 405), ("/buffer/batch-size", 415)):
        reply = client.post(url, content=b"line\n", headers={**AUTH, "Content-Type": "text/plain"})
        assert reply.status_code == status, url


def test_the_root_leads_to_the_dashboard(buffer: BufferManager) -> None:
    app = FastAPI()
    app.mount("/ingest", create_app(buffer))
    with serving(buffer) as address:
        assert httpx.get(address, follow_redirects=True).url == f"{address}/buffer/"
    reply = request(app, "GET", "/ingest/", follow_redirects=True)
    assert (reply.status_code, reply.url.path) == (200, "/ingest/buffer/")


def test_names_need_not_be_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    # pytest-xdist cannot carry a log that has such a name.
    monkeypatch.setattr(logging.getLogger("backpressure"), "disabled", True)

    class Sink:
        name = os.fsdecode(b"/srv/\xff.log")

        def send(self, batch: Batch) -> None:
            raise SinkGone(f"{self.name} is gone")

        def close(self) -> None:
            pass

    buffer = BufferManager(SMALL)
    client = Client(buffer)
    delivery = buffer.deliver_to(Sink())
    assert client.get("/buffer/stats").json()["delivery"]["sink"] == r"/srv/\udcff.log"
    buffer.add_events([b"x"])
    until(lambda: not delivery.running)
    assert r"/srv/\udcff.log is gone" in client.get("/buffer/health").json()["reasons"][0]


def test_a_key_that_is_no_utf_8_is_bad_input(client: Client) -> None:
    reply = client.post(
        "/buffer/batch-size",
        content=b'{"size": 2345, "\\ud800": 1}',
        headers={**AUTH, "Content-Type": "application/json"},
    )
    assert reply.status_code == 422


@pytest.mark.filterwarnings("default")  # of the client that it would rather have
def test_a_test_client_names_a_host_that_is_answered(buffer: BufferManager) -> None:
    """As docs/http.md says; and what it hears otherwise says what to do."""
    from starlette.testclient import TestClient

    app = FastAPI()
    app.mount("/ingest", create_app(buffer, TOKEN))
    client = TestClient(app, base_url="http://localhost")
    reply = client.post("/ingest/events", content=b"a\nb\n", headers=AUTH)
    assert reply.json()["accepted"] == 2
    reply = TestClient(app).get("/ingest/buffer/stats")
    assert reply.status_code == 421
    assert "allowed_hosts" in reply.json()["detail"]


def test_it_can_be_mounted(buffer: BufferManager) -> None:
    outer = FastAPI()
    outer.mount("/inner", create_app(buffer, TOKEN))
    assert request(outer, "GET", "/inner/buffer/stats").json()["offered"] == 0
    assert request(outer, "POST", "/inner/events", content=b"a\nb\n").json()["accepted"] == 2
    assert request(outer, "POST", "/inner/events", content=b"x" * 10_000 + b"\n").status_code == 413
    assert request(outer, "POST", "/inner/events", content=b"a\n", headers={}).status_code == 401
    assert request(outer, "GET", "/inner/buffer/").status_code == 200
    assert (
        request(outer, "POST", "/inner/buffer/batch-size", content=b"{}" + b" " * 5000).status_code
        == 413
    )


def test_it_listens_on_this_machine_only_unless_told(buffer: BufferManager) -> None:
    assert DEFAULT_HOST == "127.0.0.1"
    server = make_server(buffer)
    assert (server.config.host, server.config.proxy_headers) == ("127.0.0.1", False)
    with serving(buffer) as address:
        assert httpx.get(f"{address}/buffer/stats").status_code == 200
        redirected = httpx.get(f"{address}/buffer", follow_redirects=True)
        assert redirected.url.path == "/buffer/"
        assert (
            httpx.post(f"{address}/buffer/circuit-breaker/reset", headers=AUTH).status_code == 200
        )


def test_the_address_it_listens_on_is_an_allowed_host(buffer: BufferManager) -> None:
    for host, name in (
        ("192.0.2.1", "192.0.2.1:8127"),
        ("::1", "[::1]:8127"),
        ("2001:db8::1", "[2001:db8::1]:8127"),
    ):
        app = make_server(buffer, host=host).config.app
        assert request(app, "GET", "/buffer/stats", headers={"Host": name}).status_code == 200
    app = make_server(buffer, host="0.0.0.0").config.app
    assert request(app, "GET", "/buffer/stats", headers={"Host": "0.0.0.0"}).status_code == 421


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("allowed_hosts", ["localhost"]),
        ("allowed_hosts", ("localhost:80",)),
        ("allowed_hosts", ("http://localhost",)),
        ("allowed_hosts", ("a*.example",)),
        ("allowed_hosts", ("",)),
        ("allowed_origins", ("ops.example.com",)),
        ("allowed_origins", ("https://ops.example.com/",)),
        ("max_body_bytes", 0),
        ("max_control_bytes", 1.5),
        ("stream_seconds", -1.0),
        ("heartbeat", float("nan")),
    ],
)
def test_config_errors_name_the_field(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        HttpConfig(**{field: value})


def test_the_document_has_the_bounds_of_this_buffer() -> None:
    batching = AdaptiveBatchConfig(min_batch_size=10, initial_batch_size=20, max_batch_size=30)
    document = (
        Client(BufferManager(BufferConfig(lane_bytes=4096, batching=batching)))
        .get("/buffer/openapi.json")
        .json()
    )
    size = document["components"]["schemas"]["BatchSizeChange"]["properties"]["size"]
    assert (size["minimum"], size["maximum"]) == (10, 30)
    assert {
        *(
            "/buffer/stats",
            "/buffer/backpressure",
            "/buffer/flow-control",
            "/buffer/health",
            "/metrics",
            "/buffer/events",
            "/buffer/sinks",
        ),
        *(
            "/buffer/flow-control/rate",
            "/buffer/batch-size",
            "/buffer/circuit-breaker/reset",
            "/events",
        ),
    } == set(document["paths"])
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert ("security" in operation) == (method == "post"), path
