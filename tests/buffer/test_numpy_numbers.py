"""Numbers of numpy are numbers: its integers wherever an int is taken, its floats
wherever a float is; its bool is a bool, and neither it nor a float is an int. For every
field of every config, and every parameter of the public classes that takes an int.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

import backpressure
import ringbuf
from backpressure import (
    AdaptiveBatchManager,
    BackpressureMonitor,
    Batch,
    BufferConfig,
    BufferManager,
    CircuitBreaker,
    ConfigError,
    Durability,
    FlowControlManager,
    WhenFull,
)
from backpressure.buffer.from_mapping import build
from backpressure.testing import make_batch
from ringbuf import LatencyHistogram, MessageRing, Messages, RateWindow, RingBuffer, TokenBucket
from ringbuf._messages.gathered import Gathered

# ---------------------------------------------------------------- configs

# What a field that is None by default, or has a bound beside another field, can be.
CANDIDATES = (1, 3, 60, 1.0, 60.0, 1 << 24, True)


def fields() -> Iterator[Any]:
    """Each field of a public config that takes a number or a bool."""
    for name in backpressure.__all__:
        kind = getattr(backpressure, name)
        if not dataclasses.is_dataclass(kind) or not name.endswith("Config"):
            continue
        for field, hint in get_type_hints(kind).items():
            takes = [
                one for one in (bool, int, float) if re.search(rf"\b{one.__name__}\b", str(hint))
            ]
            if takes:
                yield pytest.param(kind, field, takes[0], id=f"{name}.{field}")


def sound(kind: type, field: str, number: type) -> Any:
    """A config in which that field is such a number."""
    more = {"directory": "unused"} if kind is BufferConfig else {}
    default = getattr(kind(**more), field)
    for value in (default, *CANDIDATES):
        if isinstance(value, (bool, int, float)) and isinstance(value, bool) == (number is bool):
            try:
                return kind(**more, **{field: number(value)})
            except ConfigError:
                continue
    raise AssertionError(f"no value for {field}")


@pytest.mark.parametrize(("kind", "field", "number"), list(fields()))
def test_a_config_keeps_pythons_own(kind: Any, field: str, number: type) -> None:
    plain = sound(kind, field, number)
    value = getattr(plain, field)
    kinds: dict[type, list[Any]] = {
        bool: [np.bool_(value)],
        int: [np.int64(value), *([np.uint8(value)] if 0 <= value < 256 else [])],
        float: [np.float64(value)],
    }
    theirs = kinds[number]
    if number is float and value == int(value):
        theirs += [np.float32(value), np.int64(value)]
    for one in theirs:
        config = dataclasses.replace(plain, **{field: one})
        assert config == plain
        assert type(getattr(config, field)) in (number, int if number is float else number)
        if kind is not BufferConfig:
            assert build(kind, {field: one}, base=plain) == plain
    wrong: dict[type, list[Any]] = {
        bool: [1, np.int64(1)],
        int: [np.float64(3), np.True_],
        float: [np.True_, "1"],
    }
    for other in wrong[number]:
        with pytest.raises(ConfigError, match=field):
            dataclasses.replace(plain, **{field: other})


@pytest.mark.parametrize("said", ["block", "BLOCK", WhenFull.BLOCK])
def test_enums_are_taken_by_their_values_and_names(said: Any) -> None:
    assert BufferConfig(when_full=said).when_full is WhenFull.BLOCK
    for member in (*WhenFull, *Durability):
        field = "when_full" if isinstance(member, WhenFull) else "durability"
        for text in (member.value, member.name, member.value.upper()):
            given: dict[str, Any] = {field: text}
            assert getattr(BufferConfig(directory="unused", **given), field) is member
    with pytest.raises(ConfigError, match="must be one of process, interval, commit"):
        BufferConfig(durability="power")  # type: ignore[arg-type]


# ---------------------------------------------------------------- parameters

Call = Callable[[Any], Any]


def ring_with(count: int = 9) -> MessageRing:
    ring = MessageRing(4096)
    ring.push_many([b"abc"] * count)
    return ring


def record_ring() -> RingBuffer:
    ring = RingBuffer(8, "i8")
    ring.push_many([1, 2, 3, 4])
    return ring


def granted() -> FlowControlManager:
    flow = FlowControlManager()
    flow.admit(9, 3)
    return flow


def read(span: Any) -> int:
    with span as view:
        return len(view)


def reserved() -> Any:
    return TokenBucket(1, 5, initial_tokens=0, now_ns=0).reserve_at(0, 5)


def breaker_after(**counts: Any) -> Any:
    breaker = CircuitBreaker()
    breaker.record_many(**{"ok": 0, "failed": 0, **counts})
    return breaker.metrics().window_calls, breaker.metrics().window_failures


def monitor_after(**counts: Any) -> Any:
    monitor = BackpressureMonitor()
    monitor.observe(**counts)
    return monitor.evaluate().signal


def buffer_with(use: Callable[[BufferManager], Any]) -> Any:
    buffer = BufferManager()
    try:
        buffer.add_events([b"a"] * 5)
        return use(buffer)
    finally:
        buffer.close(timeout=0)


def handed_out(batch: Batch | None) -> int:
    assert batch is not None
    batch.ack()
    return len(batch)


BUCKET: dict[str, Any] = {"rate": 1, "burst": 5, "now_ns": 0}

ASKED = ("acquire_up_to", "give_back", "reserve", "retry_after", "try_acquire")


def taken_by(kind: str, method: str, name: str, n: Any) -> int:
    ring = ring_with()
    return len(getattr(ring if kind == "MessageRing" else ring.consumer(), method)(**{name: n}))


def asked_of(method: str, *given: Any) -> str:
    return str(getattr(TokenBucket(**BUCKET), method)(*given))


CALLS: dict[str, Call] = {
    "AdaptiveBatchManager.adjust(size)": lambda n: AdaptiveBatchManager(
        backpressure.AdaptiveBatchConfig(min_batch_size=1)
    ).adjust(n),
    "BufferManager.deliver_to(workers)": lambda n: delivered(workers=n),
    "BufferManager.deliver_to(max_events)": lambda n: delivered(max_events=n),
    "AdaptiveBatchManager.record(size)": lambda n: AdaptiveBatchManager().record(n, 0.1, None),
    "BackpressureMonitor.observe(ok)": lambda n: monitor_after(ok=n),
    "BackpressureMonitor.observe(failed)": lambda n: monitor_after(failed=n),
    "Batch.join_into(start)": lambda n: make_batch([b"a"] * 5).join_into(bytearray(9), n),
    "BufferManager.add_events(priority)": lambda n: buffer_with(
        lambda buffer: (buffer.add_events([b"x"], n).accepted, buffer.stats().lanes[3].offered)
    ),
    "BufferManager.add_lines(priority)": lambda n: buffer_with(
        lambda buffer: (buffer.add_lines(b"x\n", n).accepted, buffer.stats().lanes[3].offered)
    ),
    "BufferManager.add_lines(max_event_bytes)": lambda n: buffer_with(
        lambda buffer: buffer.add_lines(b"abc\n", max_event_bytes=n).accepted
    ),
    "BufferManager.producer(priority)": lambda n: BufferManager().producer(n).priority,
    "BufferManager.adjust_batch_size(size)": lambda n: buffer_with(
        lambda buffer: buffer.adjust_batch_size(n * 1000 if type(n) is int else n)
    ),
    "BufferManager.adjust_burst_size(events)": lambda n: buffer_with(
        lambda buffer: buffer.adjust_burst_size(n).new
    ),
    "BufferManager.batch_waiter(max_events)": lambda n: buffer_with(
        lambda buffer: buffer.batch_waiter(n).wait(0)
    ),
    "BufferManager.get_batch(max_events)": lambda n: buffer_with(
        lambda buffer: handed_out(buffer.get_batch(n))
    ),
    "CircuitBreaker.record_many(ok)": lambda n: breaker_after(ok=n),
    "CircuitBreaker.record_many(failed)": lambda n: breaker_after(failed=n),
    "FlowControlManager.admit(n)": lambda n: FlowControlManager().admit(n, 3).granted,
    "FlowControlManager.admit(priority)": lambda n: FlowControlManager().admit(1, n).granted,
    "FlowControlManager.admit_whole(n)": lambda n: FlowControlManager().admit_whole(n, 3),
    "FlowControlManager.admit_whole(priority)": lambda n: FlowControlManager().admit_whole(1, n),
    "FlowControlManager.give_back(n)": lambda n: granted().give_back(n, 3),
    "FlowControlManager.give_back(priority)": lambda n: granted().give_back(1, n),
    "FlowControlManager.prepayment(priority)": lambda n: granted().prepayment(granted(), n).p,
    "FlowControlManager.rate(priority)": lambda n: granted().rate(n) > 0,
    "FlowControlManager.record_outcome(ok)": lambda n: granted().record_outcome(n, 0),
    "FlowControlManager.record_outcome(failed)": lambda n: granted().record_outcome(0, n),
    "FlowControlManager.set_burst(burst)": lambda n: granted().set_burst(n),
    "LatencyHistogram.record(n)": lambda n: LatencyHistogram().record(0.1, n),
    "MessageRing.__init__(capacity_bytes)": lambda n: MessageRing(
        n * 4096 if type(n) is int else n
    ),
    "MessageRing.__init__(first_seq)": lambda n: MessageRing(4096, first_seq=n).next_seq,
    "MessageRing.note_stored(seq)": lambda n: ring_with().note_stored(n),
    "MessageRing.push_gathered(start)": lambda n: ring_with().push_gathered(
        Gathered([b"a"] * 5), n
    ),
    "MessageRing.push_gathered(max_messages)": lambda n: ring_with().push_gathered(
        Gathered([b"a"] * 5), 0, n
    ),
    "MessageRing.push_lines_seq(max_lines)": lambda n: ring_with().push_lines_seq(
        b"\n" * 5, False, n
    ),
    "MessageRing.warm_ahead(most_bytes)": lambda n: ring_with().warm_ahead(n),
    **{
        f"{kind}.{method}({name})": (partial(taken_by, kind, method, name))
        for kind in ("MessageRing", "MessageConsumer")
        for method in ("pop_many", "take", "take_orphaned")
        for name in ("max_messages", "max_bytes")
        if (kind, method) != ("MessageConsumer", "take_orphaned")
    },
    "MessageRing.split(count)": lambda n: split(ring_with(), n),
    "MessageConsumer.split(count)": lambda n: split(ring_with().consumer(), n),
    "Messages.__getitem__(index)": lambda n: ring_with().pop_many()[n],
    "Messages.from_columns(first_seq)": lambda n: (
        Messages.from_columns(np.zeros(3, np.uint8), np.array([0, 3]), n).first_seq
    ),
    "Messages.join_into(start)": lambda n: ring_with().pop_many().join_into(bytearray(9), n),
    "RateWindow.__new__(buckets)": lambda n: RateWindow(1.0, n).buckets,
    "RateWindow.add(n)": lambda n: RateWindow(1.0, 4).add(n),
    "RateWindow.add_at(n)": lambda n: RateWindow(1.0, 4).add_at(0, n),
    "RingBuffer.__new__(capacity)": lambda n: RingBuffer(n * 4 if type(n) is int else n, "i8"),
    "RingBuffer.peek(n)": lambda n: read(record_ring().peek(n)),
    "RingBuffer.pop_many(max_items)": lambda n: len(record_ring().pop_many(n)),
    "RingBuffer.reserve(n)": lambda n: read(record_ring().reserve(n)),
    "TokenBucket.__new__(burst)": lambda n: TokenBucket(1, n).burst,
    "TokenBucket.__new__(initial_tokens)": lambda n: TokenBucket(0, 5, initial_tokens=n).tokens,
    "TokenBucket.set_burst(burst)": lambda n: TokenBucket(0, 5).set_burst(n),
    "TokenBucket.set_burst_at(burst)": lambda n: TokenBucket(**BUCKET).set_burst_at(0, n),
    **{f"TokenBucket.{method}(n)": (partial(asked_of, method)) for method in (*ASKED, "acquire")},
    **{f"TokenBucket.{method}_at(n)": (partial(asked_of, f"{method}_at", 0)) for method in ASKED},
}
# Times, numbers that may be floats as well, and what is a list of numbers or is made by
# the library alone.
LEFT_OUT = re.compile(
    r"\(now_ns\)|Salvage\.|Error|TooLarge|Failed|\((rate|seconds|q|qs|lowest|highest)\)"
    r"|observe\((taken|waiting|enough)\)|\(on_change\)|\(asked\)|AttachedBuffer|Deliver"
    r"|Batch\.settle|PartialFailure"  # see tests/delivery
)


def delivered(**numbers: Any) -> int:
    got: list[bytes] = []
    with BufferManager() as buffer:
        buffer.add_events([b"x"] * 9)
        delivery = buffer.deliver_to(got.extend, **numbers)
        delivery.stop()
    return len(got)


def split(of: Any, n: Any) -> int:
    return len(of.split(of.take(), n)[0])


def compiled_parameters() -> Iterator[str]:
    for stub in Path(ringbuf.__file__).parent.rglob("*.pyi"):
        for kind in ast.parse(stub.read_text()).body:
            if not isinstance(kind, ast.ClassDef) or kind.name not in ringbuf.__all__:
                continue
            for method in kind.body:
                if not isinstance(method, ast.FunctionDef) or (
                    method.name.startswith("_")
                    and method.name not in ("__new__", "__init__", "__getitem__")
                ):
                    continue
                for one in method.args.posonlyargs + method.args.args + method.args.kwonlyargs:
                    said = "" if one.annotation is None else ast.unparse(one.annotation)
                    if re.search(r"\b(int|SupportsIndex)\b", said):
                        yield f"{kind.name}.{method.name}({one.arg})"


def parameters() -> Iterator[str]:
    for name in backpressure.__all__:
        kind = getattr(backpressure, name)
        if (
            not isinstance(kind, type)
            or issubclass(kind, Enum)
            or dataclasses.is_dataclass(kind)
            or not kind.__module__.startswith("backpressure")
        ):
            continue
        for method, function in inspect.getmembers(kind, inspect.isfunction):
            if method.startswith("_") and method != "__init__":
                continue
            if function.__qualname__ != f"{name}.{method}":
                continue
            for one in inspect.signature(function).parameters.values():
                if re.search(r"\bint\b", str(one.annotation)):
                    yield f"{name}.{method}({one.name})"


def test_no_parameter_is_forgotten() -> None:
    found = {*compiled_parameters(), *parameters()}
    assert {one for one in found if not LEFT_OUT.search(one)} - CALLS.keys() == set()


@pytest.mark.parametrize("name", CALLS)
def test_integers_of_numpy_are_integers(name: str) -> None:
    call = CALLS[name]
    if re.search(r"capacity|adjust_batch_size", name):  # which 3 is too small for
        call(3)
        call(np.int64(4096))
    else:
        expected = call(3)
        for kind in (np.int64, np.uint8):
            got = call(kind(3))
            assert got == expected
            assert not isinstance(got, np.generic)
    for wrong in (np.True_, np.float64(3), 3.0, "3"):
        with pytest.raises((TypeError, ValueError)):
            call(wrong)
