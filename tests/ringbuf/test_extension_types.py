"""The types of the core as Python can reach them: made by `__new__` alone, copied,
pickled, derived from. Nothing may crash.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.processes import environment

#: In a child, as what is feared is a crash: the last line of what it says is what it
#: was about to do.
WALK = r"""
import copy, importlib, pickle, pkgutil, sys

import ringbuf
from ringbuf import MessageRing, RingBuffer, TokenBucket, RateWindow, LatencyHistogram
from ringbuf._messages.gathered import Gathered

SKIPPED = {
    "__class__", "__dir__", "__doc__", "__init_subclass__", "__new__", "__sizeof__",
    "__subclasshook__",
    "close", "give_up",  # of a descriptor that may be in other hands
}
ARGUMENTS = [(), (None,), (0,), (slice(None),), (b"x",), ("x",), (0, 0), (None, None, None)]


def say(*words):
    print(*words, flush=True)


def extension_types():
    found = set()
    for module in pkgutil.walk_packages(ringbuf.__path__, "ringbuf."):
        for value in vars(importlib.import_module(module.name)).values():
            # A heap type is a class of Python's own.
            if not isinstance(value, type) or value.__flags__ & 1 << 9:
                continue
            if value.__module__.startswith("ringbuf."):
                found.add(value)
    return sorted(found, key=lambda kind: (kind.__module__, kind.__name__))


def try_everything(thing, name):
    for call in (repr, str, len, iter, hash, bool, list, memoryview, bytes):
        say(name, call.__name__)
        try:
            call(thing)
        except Exception:
            pass
    for attribute in dir(thing):
        if attribute in SKIPPED:
            continue
        say(name, attribute)
        try:
            value = getattr(thing, attribute)
        except Exception:
            continue
        for arguments in ARGUMENTS if callable(value) else ():
            say(name, attribute, arguments)
            try:
                value(*arguments)
            except Exception:
                pass
        for content in (None, 0, b"x"):
            try:
                setattr(thing, attribute, content)
            except Exception:
                pass


def refuse_copies(thing, name):
    ways = [copy.copy, copy.deepcopy]
    ways += [lambda it, p=p: pickle.dumps(it, p) for p in range(pickle.HIGHEST_PROTOCOL + 1)]
    for number, way in enumerate(ways):
        say(name, "copy", number)
        try:
            way(thing)
        except (TypeError, pickle.PicklingError):
            continue
        raise SystemExit(f"a {name} was copied by way {number}")


def made_by_new(kind):
    ways = [kind] + [base for base in kind.__mro__ if base is not kind]
    for base in ways:
        say(kind.__name__, "new by", base.__name__)
        try:
            yield base.__new__(kind)
        except TypeError:
            pass


made = set()
for kind in extension_types():
    name = kind.__name__
    for thing in made_by_new(kind):
        made.add(name)
        refuse_copies(thing, name)
        try_everything(thing, name)
    say(name, "derived")
    try:
        derived = type("Derived", (kind,), {})
    except TypeError:
        continue
    for thing in made_by_new(derived):
        made.add(name)
        try_everything(thing, f"derived {name}")

# Those that are whole as they are, or of no ring; each says so itself where it is used.
allowed = {
    "Entrance", "Entrances", "Gate", "HistogramSnapshot", "LatencyHistogram", "Lease",
    "MessageRing", "Participant", "Parts", "Purse", "RecordRingBase", "Reservation", "Rows",
    "SharedRuns", "Spares", "TupleWriter", "Waiting",
}
if made - allowed:
    raise SystemExit(f"made by __new__ alone: {sorted(made - allowed)}")

ring, records = MessageRing(4096), RingBuffer(8, "i8")
ring.push_many([b"a", b"b"])
with records.reserve(1) as span:
    for thing in (
        ring, ring.producer(), ring.consumer(), ring.take(1), Gathered([b"a"]),
        records, records.producer(), records.consumer(), span,
        TokenBucket(1, 1), TokenBucket(1, 1).reserve(1), RateWindow(1, 1), LatencyHistogram(),
    ):
        refuse_copies(thing, type(thing).__name__)
say("done")
"""


@pytest.mark.platform
@pytest.mark.timeout(120)
def test_no_type_can_be_made_or_copied_past_its_maker() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", "error", "-c", WALK],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=100,
    )
    said = done.stdout.splitlines()[-3:]
    assert (done.returncode, said[-1:]) == (0, ["done"]), f"{said}\n{done.stderr[-3000:]}"
