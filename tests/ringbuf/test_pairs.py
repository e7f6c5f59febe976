"""The exchange of two words at once, compiled by itself: each way that a machine may do
it, under threads.

The C++ is what `_core/pairs.pxd` holds. The way of another processor runs where its
compiler and an emulator are installed.
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
#include <thread>
#include <vector>
static ringbuf_pair_word word;
static uint64_t of(uint64_t position) { return position * 0x9E3779B97F4A7C15ull ^ position >> 7; }
int main(int, char **argv) {
    const uint64_t each = strtoull(argv[1], nullptr, 10), threads = 3;
    std::atomic<uint64_t> torn{0}, lost{0};
    std::atomic<bool> done{false};
    word.rest = of(0);
    std::vector<std::thread> all;
    for (uint64_t t = 0; t < threads; t++) all.emplace_back([&] {
        ringbuf_pair seen = ringbuf_load_pair(&word);
        for (uint64_t i = 0; i < each; i++) {
            while (!ringbuf_cas_pair(&word, &seen, {seen.position + 1, of(seen.position + 1)}))
                if (seen.rest != of(seen.position)) torn++;
            seen = {seen.position + 1, of(seen.position + 1)};
        }
    });
    std::thread reader([&] {
        uint64_t last = 0;
        while (!done) {
            ringbuf_pair seen = ringbuf_load_pair(&word);
            if (seen.rest != of(seen.position)) torn++;
            if (seen.position < last) lost++;
            last = seen.position;
        }
    });
    for (auto &thread : all) thread.join();
    done = true;
    reader.join();
    /* Half of it right is not enough, and what was found is told. */
    ringbuf_pair half = {word.position, 1}, other = {1, word.rest};
    bool fooled = ringbuf_cas_pair(&word, &half, {0, 0}) || ringbuf_cas_pair(&word, &other, {0, 0});
    bool told = half.rest == word.rest && other.position == word.position;
    printf("%d %llu %llu %llu %d %d\n", RINGBUF_WIDE, (unsigned long long)word.position,
           (unsigned long long)torn, (unsigned long long)lost, fooled, told);
}
"""


@pytest.mark.parametrize(("compiler", "flags", "run", "wide"), [
    ("c++", [], [], True),
    ("c++", ["-DRINGBUF_NO_WIDE_EXCHANGE"], [], False),
    ("aarch64-linux-gnu-g++", ["-static"], ["qemu-aarch64-static"], True),
    ("aarch64-linux-gnu-g++", ["-static", "-march=armv8.1-a"], ["qemu-aarch64-static"], True),
])  # fmt: skip
def test_two_words_change_as_one(
    tmp_path: Path, compiler: str, flags: list[str], run: list[str], wide: bool
) -> None:
    for needed in (compiler, *run):
        if shutil.which(needed) is None:
            pytest.skip(f"{needed} is not installed")
    text = (ROOT / "src/ringbuf/_core/pairs.pxd").read_text()
    (block,) = re.findall(r'cdef extern from \*:\n    (""".*?""")', text, re.DOTALL)
    source = tmp_path / "pairs.cpp"
    source.write_text("#include <cstdlib>\n" + ast.literal_eval(block) + HARNESS)
    program = tmp_path / "pairs"
    subprocess.run(
        [compiler, "-std=c++20", "-O2", "-pthread", *flags, str(source), "-o", str(program)],
        check=True,
    )
    each = 2_000 if run else 100_000
    said = subprocess.run(
        [*run, str(program), str(each)], check=True, capture_output=True, text=True, timeout=100
    )
    assert said.stdout.split() == [str(int(wide)), str(3 * each), "0", "0", "0", "1"]
