"""Checks that two files are the same, byte for byte: exits with 1 and the first
difference where they are not.

    python bench/demo/compare.py access.log out.log
"""

from __future__ import annotations

import argparse
import sys
from typing import BinaryIO

_CHUNK = 1 << 20


def first_difference(one: BinaryIO, other: BinaryIO) -> tuple[int | None, int]:
    """(offset of the first byte that differs or None, newlines before it)."""
    offset = lines = 0
    while True:
        a, b = one.read(_CHUNK), other.read(_CHUNK)
        if a != b:
            pairs = enumerate(zip(a, b, strict=False))
            same = next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
            return offset + same, lines + a[:same].count(b"\n")
        if not a:
            return None, lines
        offset += len(a)
        lines += a.count(b"\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Check that two files are the same.")
    parser.add_argument("one")
    parser.add_argument("other")
    options = parser.parse_args()
    with open(options.one, "rb") as one, open(options.other, "rb") as other:
        offset, lines = first_difference(one, other)
    if offset is not None:
        where = f"from byte {offset:,} in line {lines + 1:,} on"
        print(f"DIFFERENT: {options.one} and {options.other} {where}", file=sys.stderr)
        return 1
    print(f"identical: {options.one} and {options.other}, {lines:,} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
