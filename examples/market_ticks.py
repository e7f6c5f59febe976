"""Market ticks, one call each: from a feed's callback to bars of one second.

    python examples/market_ticks.py --ticks 1000000

A feed calls `on_tick` for each trade, on its hot path. There it is one compiled call; a
thread of the delivery takes whole batches out and makes the bars with numpy. A sink
that is slow fills the buffer and never holds up the feed: what does not fit is refused,
and counted. With `--directory` nothing that was accepted is lost by a crash.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator

import numpy as np

from backpressure import Batch, BufferConfig, BufferManager

SYMBOLS = ("AAPL", "AMZN", "GOOG", "MSFT", "NVDA")
TICK = np.dtype([("at_ns", "<i8"), ("symbol", "<u2"), ("size", "<u4"), ("price", "<f8")])
SECOND = 1_000_000_000


class Bars:
    """The sink: open, high, low, close and volume of each symbol and second."""

    def __init__(self) -> None:
        self.bars: dict[tuple[int, str], tuple[float, float, float, float, int]] = {}
        self.ticks = 0

    def send(self, batch: Batch) -> None:
        # The events lie one after the other: all of the batch is one array.
        ticks = batch.data.view(TICK)
        self.ticks += len(ticks)
        seconds = ticks["at_ns"] // SECOND
        for second, symbol in np.unique(np.stack([seconds, ticks["symbol"]]), axis=1).T:
            own = ticks[(seconds == second) & (ticks["symbol"] == symbol)]
            key, prices = (int(second), SYMBOLS[symbol]), own["price"]
            first, high, low, _, volume = self.bars.get(
                key, (prices[0], prices[0], prices[0], prices[0], 0)
            )
            self.bars[key] = (
                float(first),
                float(max(high, prices.max())),
                float(min(low, prices.min())),
                float(prices[-1]),
                volume + int(own["size"].sum()),
            )

    def close(self) -> None:
        pass


def feed(count: int, per_second: int = 100_000) -> Iterator[bytes]:
    """Stands in for a real one: ticks as they come from the wire."""
    rng = random.Random(1)
    prices = [100.0 + 50.0 * n for n in range(len(SYMBOLS))]
    row = np.zeros((), TICK)
    for n in range(count):
        symbol = rng.randrange(len(SYMBOLS))
        prices[symbol] += rng.choice((-0.01, 0.0, 0.01))
        row["at_ns"], row["symbol"] = n * SECOND // per_second, symbol
        row["size"], row["price"] = rng.randrange(1, 500), round(prices[symbol], 2)
        yield row.tobytes()


def run(ticks: list[bytes], bars: Bars, directory: str | None = None) -> float:
    """Pass the ticks through a buffer into the bars; seconds that the feed took."""
    with (
        BufferManager(BufferConfig(directory=directory)) as buffer,
        buffer.deliver_to(bars),
        buffer.producer(priority=1) as producer,
    ):
        on_tick: Callable[[bytes], bool] = producer.add  # what a feed's API wants
        begun = time.perf_counter()
        for tick in ticks:
            if not on_tick(tick):
                # Count it, alert or wait: `producer.refusal` says why, and how long.
                raise RuntimeError(f"refused: {producer.refusal}")
        return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ticks", type=int, default=200_000)
    parser.add_argument("--directory", help="keep what was accepted across a crash")
    options = parser.parse_args()
    ticks, bars = list(feed(options.ticks)), Bars()
    seconds = run(ticks, bars, options.directory)
    print(f"{len(ticks):,} ticks in {seconds:.2f} s of the feed's time, {bars.ticks:,} in bars")
    for (second, symbol), (first, high, low, last, volume) in sorted(bars.bars.items())[:5]:
        print(f"{second:3} s  {symbol:5}{first:9.2f}{high:9.2f}{low:9.2f}{last:9.2f}{volume:12,}")


if __name__ == "__main__":
    main()
