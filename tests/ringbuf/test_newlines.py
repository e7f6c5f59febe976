"""The vector code for lines, compiled by itself: each way gives what PLAIN gives, and
stays within memory of the exact size.

The C++ is what `_messages/newlines.pxd` holds. The way of another processor runs where
its compiler and an emulator are installed.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = [pytest.mark.platform, pytest.mark.single_thread]

HARNESS = r"""
#include <cstdio>
#include <random>
#include <vector>
/* On the heap, with nothing behind it: AddressSanitizer sees each byte too far. */
template <class T> struct Block {
    T *at;
    explicit Block(size_t n) : at((T *)malloc(n * sizeof(T) + (n == 0))) {}
    ~Block() { free(at); }
};
static const double densities[] = {0.0, 0.002, 0.01, 0.05, 0.3, 1.0};
static bool agrees(int way, std::mt19937 &random) {
    size_t n = random() % (random() % 3 ? 9000 : 200);
    size_t most = random() % 2 ? 4096 : 1 + random() % 50;
    double density = densities[random() % 6];
    Block<char> chunk(n);
    for (size_t i = 0; i < n; i++)
        chunk.at[i] = random() % 100000 < density * 100000 ? '\n' : (char)(11 + random() % 240);
    Block<uint32_t> plain(most + RINGBUF_SPARE_ENDS), ends(most + RINGBUF_SPARE_ENDS);
    size_t count = ringbuf_find_lines(RINGBUF_PLAIN, chunk.at, n, plain.at, most);
    if (ringbuf_find_lines(way, chunk.at, n, ends.at, most) != count) return false;
    if (memcmp(plain.at, ends.at, count * sizeof(uint32_t)) != 0) return false;
    if (count == 0) return true;
    /* As much of the chunk as the lines take up, without the last newline; or all. */
    size_t payload = ends.at[count - 1], have = random() % 2 ? n : payload + count - 1;
    size_t room = payload + random() % 80;
    Block<char> lines(have);
    Block<unsigned char> right(room), made(room);
    memcpy(lines.at, chunk.at, have);
    ringbuf_copy_lines(RINGBUF_PLAIN, right.at, room, lines.at, have, ends.at, count);
    ringbuf_copy_lines(way, made.at, room, lines.at, have, ends.at, count);
    if (memcmp(right.at, made.at, payload) != 0) return false;
    /* Changed by others after its ends were found: other bytes, and no others' memory. */
    for (size_t i = 0; i < have; i += 1 + random() % 50) lines.at[i] = random() % 2 ? '\n' : 'z';
    ringbuf_copy_lines(way, made.at, room, lines.at, have, ends.at, count);
    return true;
}
int main(int, char **argv) {
    int times = atoi(argv[1]);
    for (int way = RINGBUF_PLAIN; way <= RINGBUF_NEON; way++) {
        if (!ringbuf_has_way(way)) continue;
        std::mt19937 random(7);
        int right = 0;
        for (int i = 0; i < times; i++) right += agrees(way, random);
        printf("%d:%d ", way, right);
    }
    printf("best:%d\n", ringbuf_best_line_way());
}
"""
NEON = 3


@pytest.mark.parametrize(("compiler", "flags", "run"), [
    ("g++", ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"], []),
    ("c++", ["-O3"], []),
    ("aarch64-linux-gnu-g++", ["-O3", "-static"], ["qemu-aarch64-static", "qemu-aarch64"]),
], ids=["sanitized", "native", "aarch64"])  # fmt: skip
def test_every_way_gives_the_same(
    tmp_path: Path, compiler: str, flags: list[str], run: list[str]
) -> None:
    emulator = [found for one in run if (found := shutil.which(one))][:1]
    if shutil.which(compiler) is None or bool(run) != bool(emulator):
        pytest.skip(f"{compiler} or its emulator is not installed")
    text = (ROOT / "src/ringbuf/_messages/newlines.pxd").read_text()
    (block,) = re.findall(r'cdef extern from \* nogil:\n    (""".*?""")', text, re.DOTALL)
    source = tmp_path / "newlines.cpp"
    source.write_text("#include <cstdlib>\n" + ast.literal_eval(block) + HARNESS)
    program = tmp_path / "newlines"
    subprocess.run(
        [compiler, "-std=c++20", "-Wall", *flags, str(source), "-o", str(program)], check=True
    )
    times = 3000
    said = subprocess.run(
        [*emulator, str(program), str(times)],
        check=True, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    *ways, best = said.stdout.split()
    assert all(way.endswith(f":{times}") for way in ways), said.stdout
    assert len(ways) > 0
    if emulator:
        assert best == f"best:{NEON}"
