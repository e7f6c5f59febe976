"""Log lines: real ones where they are at hand, else of the same shape and lengths."""

from __future__ import annotations

import random

from tests.support.paths import DATA

__all__ = ["access_log", "real_log"]


def access_log(lines: int, seed: int = 0) -> bytes:
    """Lines of the shape and the lengths of an Apache access log."""
    rng = random.Random(seed)
    out = []
    for number in range(lines):
        path = "/".join("x" * rng.randrange(3, 12) for _ in range(rng.randrange(1, 9)))
        status = rng.choices((200, 304, 404, 500), weights=(90, 5, 4, 1))[0]
        agent = "Mozilla/5.0 (X11; Linux x86_64) " + "y" * rng.choice((0, 40, 80, 400))
        out.append(
            f"10.0.{number % 256}.7 - - "
            f"[17/May/2015:10:{number // 60 % 60:02}:{number % 60:02} +0000] "
            f'"GET /{path} HTTP/1.1" {status} {number} "-" "{agent}"\n'
        )
    return "".join(out).encode()


def real_log(name: str) -> bytes:
    """A real log where there is one, else lines of that shape.

    Those of nginx_json.log are long.
    """
    path = DATA / name
    if path.exists():
        return path.read_bytes()
    lines = access_log(10_000)
    return lines if name == "apache_access.log" else lines.replace(b'"-"', b"z" * 5000)[:2_800_000]
