"""Regular expressions that a configuration brings, searched in lines that anyone may
have written.

`re` backtracks: for some patterns a line of 30 bytes takes for ever, and meanwhile no
other thread of the process runs. So, at most SEARCHED_BYTES of a line are searched; and
`refuse_endless` tries each pattern, in a process of its own, on lines made to be the
worst for it: what each of its repetitions takes, as often as there is room, and then
something that it does not take.

A pattern that needs the square of the length passes (".*x" does, where there is no x);
its cube, or worse, does not. The lines come from the pattern by rules of thumb: one
that is worse than all of them can be written, but hardly by accident.
"""

from __future__ import annotations

import json
import re
import re._constants as ops  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final, TypeAlias

__all__ = ["SEARCHED_BYTES", "compile_pattern", "hostile_lines", "refuse_endless"]

#: Bytes of a line, from its beginning, that a pattern is searched in.
SEARCHED_BYTES: Final = 4096
# Processor time for one line. The square of the length takes some hundredths of it, the
# cube minutes.
_MOST_SECONDS: Final = 1.0
# Of the whole trial, by the clock: a machine may be busy.
_PATIENCE: Final = 60.0
_MOST_LINES: Final = 200
_TAILS: Final = (b"\0", b"!", b"")

_TRIAL: Final = """
import json, re, sys, time
try:
    import resource
    most = int(float(sys.argv[1])) + 1
except ImportError:
    resource = None
for number, (pattern, lines) in enumerate(json.load(sys.stdin)):
    search = re.compile(pattern.encode("latin-1")).search
    for line in lines:
        print(number, flush=True)
        if resource:
            spent = int(time.process_time())
            hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
            resource.setrlimit(resource.RLIMIT_CPU, (spent + most + 1, hard))
        begun = time.process_time()
        search(line.encode("latin-1"))
        if time.process_time() - begun > float(sys.argv[1]):
            sys.exit(1)
print("all", flush=True)
"""

Nodes: TypeAlias = Iterable[tuple[Any, Any]]


def compile_pattern(text: str) -> re.Pattern[bytes]:
    """A pattern for lines, which are bytes. ValueError says what is wrong with it."""
    try:
        return re.compile(text.encode("utf-8", "surrogateescape"))
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"the regular expression {text!r} is not valid: {error}") from error


def refuse_endless(patterns: Iterable[re.Pattern[bytes]]) -> None:
    """ValueError for the first of them that may search one line for seconds, or years.

    It takes as long as a Python takes to start, where there is a pattern at all.
    """
    all_patterns = list(patterns)
    if not all_patterns:
        return
    trial = [
        (
            one.pattern.decode("latin-1"),
            [line.decode("latin-1") for line in islice(hostile_lines(one), _MOST_LINES)],
        )
        for one in all_patterns
    ]
    command = [sys.executable, "-I", "-c", _TRIAL, str(_MOST_SECONDS)]
    try:
        said = subprocess.run(
            command,
            input=json.dumps(trial).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE,
        ).stdout
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
    except OSError:
        return  # no process is to be had: the bound is all there is
    words = said.split()
    if words and words[-1] != b"all":
        text = all_patterns[int(words[-1])].pattern.decode("utf-8", "replace")
        raise ValueError(
            f"the regular expression {text!r} may search a single line for ever: it repeats what "
            "is repeated already, in more ways than one. Write it without one of the two, or "
            "make the inner one possessive ('++', '*+')"
        )


def hostile_lines(pattern: re.Pattern[bytes]) -> Iterator[bytes]:
    """Lines of SEARCHED_BYTES that are hard for a pattern, and short ones."""
    for prefix, body in _repetitions(parser.parse(pattern.pattern, pattern.flags), b""):
        if body:
            for size in (SEARCHED_BYTES, 40):
                for tail in _TAILS:
                    room = max(0, size - len(prefix) - len(tail))
                    yield prefix + (body * (room // len(body) + 1))[:room] + tail


def _repetitions(nodes: Nodes, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    """What leads to each repetition, and what it repeats."""
    for op, argument in nodes:
        for body in _parts(op, argument):
            if op in _REPEATS and argument[1] > 1:
                yield prefix, _example(body)
            yield from _repetitions(body, prefix)
        prefix += _example([(op, argument)])


_REPEATS: Final = frozenset({ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT})


def _parts(op: Any, argument: Any) -> list[Nodes]:
    """The patterns within a node."""
    if op in _REPEATS:
        return [argument[2]]
    if op is ops.SUBPATTERN:
        return [argument[3]]
    if op is ops.BRANCH:
        return list(argument[1])
    if op is ops.ATOMIC_GROUP:
        return [argument]
    if op in (ops.ASSERT, ops.ASSERT_NOT):
        return [argument[1]]
    if op is ops.GROUPREF_EXISTS:
        return [one for one in argument[1:] if one is not None]
    return []


def _example(nodes: Nodes) -> bytes:
    """Something that is matched, but for what looks ahead, behind or back."""
    found = b""
    for op, argument in nodes:
        if op is ops.LITERAL:
            found += bytes([argument & 255])
        elif op is ops.NOT_LITERAL:
            found += b"a" if argument != ord("a") else b"b"
        elif op is ops.ANY:
            found += b"a"
        elif op is ops.IN:
            found += _member(argument)
        elif op in _REPEATS:
            least, most, body = argument
            found += _example(body) * min(max(least, 1), most, SEARCHED_BYTES)
        elif op not in (ops.ASSERT, ops.ASSERT_NOT) and (parts := _parts(op, argument)):
            found += _example(parts[0])
        found = found[:SEARCHED_BYTES]
    return found


_USUAL: Final = bytes(range(ord("a"), ord("z") + 1)) + b"0 -_.,:;/=\"'" + bytes(range(256))
_CATEGORIES: Final = {
    ops.CATEGORY_DIGIT: (rb"\d", True),
    ops.CATEGORY_NOT_DIGIT: (rb"\d", False),
    ops.CATEGORY_SPACE: (rb"\s", True),
    ops.CATEGORY_NOT_SPACE: (rb"\s", False),
    ops.CATEGORY_WORD: (rb"\w", True),
    ops.CATEGORY_NOT_WORD: (rb"\w", False),
}


def _member(items: Nodes) -> bytes:
    """A byte of a class; nothing where the class is empty."""
    negated, others = False, []
    for op, argument in items:
        if op is ops.NEGATE:
            negated = True
        else:
            others.append((op, argument))
    for byte in _USUAL:
        if any(_has(op, argument, byte) for op, argument in others) is not negated:
            return bytes([byte])
    return b""


def _has(op: Any, argument: Any, byte: int) -> bool:
    if op is ops.LITERAL:
        return bool(argument == byte)
    if op is ops.RANGE:
        return bool(argument[0] <= byte <= argument[1])
    expression, wanted = _CATEGORIES[argument]
    return (re.match(expression, bytes([byte])) is not None) is wanted
