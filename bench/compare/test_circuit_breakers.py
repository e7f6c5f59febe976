"""What a guarded call costs on a healthy path, beside the breakers of the Python world
in the same process.

Contestants are timed in turn, many rounds over, and the best round of each counts, so
that what else the machine does hits all alike. `extra_info` holds the ratios, the best
of ours and theirs going by the same face:

    decorator, call    judged against the fastest peer of all, whatever its face: at
                       most half of it
    permit             no peer has it: judged against the fastest peer of all
    with               judged against the fastest `with` of a peer

A face of a peer that does not refuse calls when its circuit is open is no guard, and
not timed: that is `call` and `with` of circuitbreaker, whose decorator alone looks.
What the peers do for the call differs as well: pybreaker holds a lock across it,
circuitbreaker has none at all and loses counts under threads, purgatory copies what
changed through a message bus; all three count consecutive failures. Ours counts exactly
under threads, in a rolling window, by generation.

A `with` of ours costs more than its other faces: which block it is that ends is found
through a context variable, so that tasks and generators that interleave keep their
permits apart. The peers keep nothing, as they have no generations.

A peer that is not installed is skipped by name; `pip install -e .[compare]` brings them
all.
"""

from __future__ import annotations

import importlib.metadata
import os
import timeit
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from backpressure import CircuitBreaker, CircuitBreakerConfig, CircuitOpenError

# Each round long enough for a few of our visits to the lock.
ROUNDS, CALLS = (40, 4_096) if not os.environ.get("CI") else (3, 200)
# The distributions of the extra `compare`.
PEERS = ("pybreaker", "circuitbreaker", "purgatory")


def work(x: int) -> int:
    return x + 1


def fail(x: int) -> int:
    raise OSError


@dataclass(frozen=True)
class Face:
    """One way to guard a call.

    `setup` makes `guard` from `subject`, and `statement` calls `work` once through it.
    """

    owner: str
    name: str
    setup: str
    statement: str

    def names(self, subject: object, function: object = work) -> dict[str, object]:
        names = {"subject": subject, "work": function}
        exec(self.setup, names)
        return names


OURS = [
    Face("ours", "decorator", "guard = subject(work)", "r = guard(1)"),
    Face("ours", "call", "guard = subject", "r = guard.call(work, 1)"),
    Face("ours", "permit", "guard = subject", "p = guard.try_acquire()\nr = work(1)\np.success()"),
    Face("ours", "with", "guard = subject", "with guard:\n    r = work(1)"),
]
THEIRS = [
    Face("pybreaker", "decorator", "guard = subject(work)", "r = guard(1)"),
    Face("pybreaker", "call", "guard = subject", "r = guard.call(work, 1)"),
    Face("pybreaker", "with", "guard = subject", "with guard.calling():\n    r = work(1)"),
    Face("circuitbreaker", "decorator", "guard = subject(work)", "r = guard(1)"),
    Face("purgatory", "decorator", "guard = subject('work')(work)", "r = guard(1)"),
    Face(
        "purgatory", "with", "guard = subject", "with guard.get_breaker('work'):\n    r = work(1)"
    ),
]
# What a face of ours may cost, in costs of the peer that it is judged against.
LIMITS = {"decorator": 0.5, "call": 0.5, "permit": 0.6, "with": 1.3}


def make(peer: str) -> Any:
    module: ModuleType = pytest.importorskip(
        peer, reason=f"{peer} is not installed (extra: compare)"
    )
    return module.SyncCircuitBreakerFactory() if peer == "purgatory" else module.CircuitBreaker()


def trip(face: Face, subject: object) -> None:
    """Have the circuit opened by failures; then see that the face refuses."""
    names = face.names(subject, fail)
    for _ in range(20):
        try:
            exec(face.statement, names)
        except Exception:
            continue
    calls: list[int] = []
    names = face.names(subject, calls.append)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - each peer has its own
        exec(face.statement, names)
    assert not isinstance(caught.value, OSError)
    assert calls == [], f"{face.owner} calls on though its circuit is open"


def seconds_per_call(contestants: list[tuple[Face, Any]]) -> list[float]:
    """The best round of each, measured in turn."""
    timers = [
        timeit.Timer(face.statement, globals=face.names(subject)) for face, subject in contestants
    ]
    best = [float("inf")] * len(timers)
    for _ in range(ROUNDS):
        for number, timer in enumerate(timers):
            best[number] = min(best[number], timer.timeit(CALLS))
    return [seconds / CALLS for seconds in best]


def installed() -> list[Face]:
    found = []
    for face in THEIRS:
        try:
            importlib.metadata.version(face.owner)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(face)
    return found


@pytest.mark.parametrize("face", OURS, ids=lambda face: face.name)
def test_ours(benchmark: BenchmarkFixture, face: Face) -> None:
    rivals = [rival for rival in installed() if face.name != "with" or rival.name == "with"]
    if not rivals:
        pytest.skip(f"none of {', '.join(PEERS)} is installed (extra: compare)")
    code = compile(face.statement, face.name, "exec")
    breaker = CircuitBreaker()
    names = face.names(breaker)
    benchmark(exec, code, names)
    assert names["r"] == 2
    metrics = breaker.metrics()
    assert metrics.admitted == metrics.succeeded > 0
    broken = CircuitBreaker(CircuitBreakerConfig(min_requests=5))
    if face.name != "permit":
        trip(face, broken)
        with pytest.raises(CircuitOpenError):
            exec(code, face.names(broken))
    if benchmark.disabled:
        return
    cost, *theirs = seconds_per_call(
        [(face, CircuitBreaker()), *((rival, make(rival.owner)) for rival in rivals)]
    )
    ratios = {
        f"{rival.owner} {importlib.metadata.version(rival.owner)} {rival.name}": round(
            cost / seconds, 3
        )
        for rival, seconds in zip(rivals, theirs, strict=True)
    }
    ratio = cost / min(theirs)
    benchmark.extra_info.update(
        nanoseconds=round(cost * 1e9), ratio=round(ratio, 3), limit=LIMITS[face.name], ratios=ratios
    )
    print(
        f"\n{face.name}: {cost * 1e9:.0f} ns, {ratio:.2f} of the fastest peer, at most "
        f"{LIMITS[face.name]}; {ratios}"
    )
    assert ratio <= LIMITS[face.name], ratios


@pytest.mark.parametrize("face", THEIRS, ids=lambda face: f"{face.owner}-{face.name}")
def test_peer(benchmark: BenchmarkFixture, face: Face) -> None:
    subject = make(face.owner)
    names = face.names(subject)
    benchmark(exec, compile(face.statement, face.name, "exec"), names)
    assert names["r"] == 2
    trip(face, make(face.owner))
