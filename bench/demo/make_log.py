"""Makes an Apache access log (combined format) of any length: the same bytes for the
same seed.

    python bench/demo/make_log.py 1000000 access.log

Shape and lengths follow a real site's log (231 bytes a line on average, the longest
above 1,000): few popular pages and many rare ones, bursts of requests from one client,
crawlers, missing pages. Standard library only.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from itertools import accumulate

# Lines that are made at a time: enough that drawing by columns pays off, little enough
# to stay in the cache.
_BLOCK = 10_000
_START = 1_767_225_600  # 2026-01-01 00:00:00 UTC
_REQUESTS_A_SECOND = 40

_SITE = "https://www.example.org"
_WORDS = """
archive articles assets backup blog build cache capture cluster code config console dashboard
deploy docs download events feed files filter fonts gallery guide images index ingest install
kernel latency library logs manual metrics network notes pages parser pipeline plugin
presentations profile projects queue release report scripts search server setup shell slides
static storage stream style talks theme tools tracing tutorial update video wiki
"""
_KINDS = (
    (".html", 9),
    ("/", 8),
    (".png", 7),
    (".css", 3),
    (".js", 3),
    (".jpg", 2),
    ("?feed=rss", 2),
)
_STATUS = (
    ("200", 9126),
    ("304", 445),
    ("404", 213),
    ("301", 164),
    ("206", 45),
    ("500", 5),
    ("403", 2),
)
_METHODS = (("GET", 995), ("HEAD", 4), ("POST", 1))
_SYSTEMS = (
    "Windows NT 10.0; Win64; x64",
    "Macintosh; Intel Mac OS X 10_15_7",
    "X11; Linux x86_64",
    "X11; Ubuntu; Linux x86_64",
    "iPhone; CPU iPhone OS 17_5 like Mac OS X",
    "Linux; Android 14; Pixel 8",
)
_CRAWLERS = (
    "-",
    "FeedParser/6.0 +https://feeds.example.net/about",
    "ReaderBot/2.11 (https://reader.example.com/)",
    "Mozilla/5.0 (compatible; SearchBot/2.1; +https://search.example.com/bot.html)",
)


def log_lines(count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` lines, without newlines."""
    rng = random.Random(seed)
    pages = [_page(rng) for _ in range(3000)]
    page_weights = list(
        accumulate(1 / rank for rank in range(1, len(pages) + 1))
    )  # Zipf, as on real sites
    clients = [".".join(str(rng.randrange(1, 255)) for _ in range(4)) for _ in range(1700)]
    agents = [_browser(rng) for _ in range(400)] + [agent for agent in _CRAWLERS for _ in range(30)]
    # What comes from one client keeps its browser; pages refer to pages, or to nothing.
    visitors = [f"{client} - - [".encode() for client in clients]
    tails = [f'"{agent}"'.encode() for agent in rng.choices(agents, k=len(clients))]
    referrers = [b' "-" ', *(f' "{_SITE}{page}" '.encode() for page in rng.sample(pages, 800))]
    referrer_weights = list(accumulate([550, *[0.9] * 800]))
    requests = [f'] "{method} {page} HTTP/1.1" '.encode() for method, page in _requests(rng, pages)]
    results = [f"{status} {_size(rng, status)}".encode() for status in _draw(rng, _STATUS, 5000)]
    visitor = 0
    for first in range(0, count, _BLOCK):
        size = min(_BLOCK, count - first)
        seconds = [_START + (first + i) // _REQUESTS_A_SECOND for i in range(size)]
        stamps = {second: _stamp(second) for second in set(seconds)}
        columns = zip(
            seconds,
            rng.choices(requests, cum_weights=page_weights, k=size),
            rng.choices(results, k=size),
            rng.choices(referrers, cum_weights=referrer_weights, k=size),
            rng.choices(range(12), k=size),
            strict=True,
        )
        for second, request, result, referrer, draw in columns:
            if draw == 0:  # the next visitor: a dozen requests each, on average
                visitor = rng.randrange(len(visitors))
            yield b"".join(
                (visitors[visitor], stamps[second], request, result, referrer, tails[visitor])
            )


def _page(rng: random.Random) -> str:
    words = _WORDS.split()
    depth = rng.choices((1, 2, 3, 4, 6), weights=(10, 30, 30, 15, 2))[0]
    parts = ["-".join(rng.choices(words, k=rng.choice((1, 1, 2)))) for _ in range(depth)]
    page = "/" + "/".join(parts) + _draw(rng, _KINDS, 1)[0]
    if rng.random() < 0.005:  # the long tail: a search with everything in its query
        page += "?q=" + "+".join(rng.choices(words, k=rng.randrange(40, 120)))
    return page


def _requests(rng: random.Random, pages: list[str]) -> Iterator[tuple[str, str]]:
    return zip(_draw(rng, _METHODS, len(pages)), pages, strict=True)


def _browser(rng: random.Random) -> str:
    system = rng.choice(_SYSTEMS)
    if rng.random() < 0.3:
        version = rng.randrange(115, 140)
        return f"Mozilla/5.0 ({system}; rv:{version}.0) Gecko/20100101 Firefox/{version}.0"
    chrome = f"{rng.randrange(110, 132)}.0.{rng.randrange(5000, 6900)}.{rng.randrange(20, 200)}"
    return (
        f"Mozilla/5.0 ({system}) AppleWebKit/537.36 (KHTML, like Gecko)"
        f" Chrome/{chrome} Safari/537.36"
    )


def _size(rng: random.Random, status: str) -> str:
    return "-" if status == "304" else str(int(rng.lognormvariate(9, 1.6)))


def _draw(rng: random.Random, table: tuple[tuple[str, int], ...], count: int) -> list[str]:
    return rng.choices(
        [value for value, _ in table], weights=[weight for _, weight in table], k=count
    )


def _stamp(second: int) -> bytes:
    return time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(second)).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description="Make an Apache access log.")
    parser.add_argument("lines", type=int)
    parser.add_argument("path")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with open(options.path, "wb", buffering=1 << 20) as file:
        file.writelines(line + b"\n" for line in log_lines(options.lines, options.seed))


if __name__ == "__main__":
    main()
