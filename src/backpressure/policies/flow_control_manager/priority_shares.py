"""Guaranteed shares of one pool of tokens, with borrowing.

The tokens are one pool c. Each priority p has a claim r[p] on it that grows at share[p]
* rate, up to cap[p] = share[p] * burst / 2. Only priorities that asked lately count.
One call of p may take

    max(r[p], c - (cap[q] of every more urgent q) - (r[q] of every less urgent q))

- What others leave free is taken at no loss to one's own claim; so c covers the sum of
  the claims, always.
- A flood from below leaves the reserves of the more urgent in the pool (trunk
  reservation, as in telephone networks): they find room at once, and what they took of
  a reserve fills up before the flood goes on.
- A flood from above leaves the claims of the less urgent: each goes on at its share,
  and none starves.
- A priority that is alone has all of c: the whole rate, the whole burst. What none
  claims the most urgent get.
- While the pool stays above the sum of all caps nothing has to be looked up: that is
  the common case.

Not safe for several threads: FlowControlManager calls it under its lock.
"""

from __future__ import annotations

import math

from backpressure.base.priority import PRIORITY_LEVELS

__all__ = ["PriorityShares"]

# Guaranteed parts of the rate, most urgent first. A fifth is unassigned: it goes to
# the most urgent that asks. Where there are fewer priorities, theirs grow in proportion
# until they assign as much.
_SHARES = (0.40, 0.20, 0.10, 0.06, 0.04)
# The part of a share of the burst that is kept in reserve. What is reserved cannot
# take up what flows in between two calls of a flood: with all of it, a flood that calls
# rarely would lose some of the rate.
_RESERVE = 0.5
# A priority that did not ask for this long (seconds) has no claim: longer than pauses
# between batches, but frees a reserve soon.
_ACTIVE_SECONDS = 10.0
# A claim that lacks less than this of an event is whole: rounding of floats. The bucket
# counts exactly.
_ROUNDING = 1e-6


def shares_of(levels: int) -> tuple[float, ...]:
    """The guaranteed parts of the rate where there are that many priorities."""
    some = _SHARES[:levels]
    return tuple(share * (sum(_SHARES) / sum(some)) for share in some)


class PriorityShares:
    """The claims of the priorities on the pool: the law at the head of this file.

    levels: how many priorities there are.
    """

    def __init__(self, burst: int, now: float, levels: int = PRIORITY_LEVELS) -> None:
        self._shares = shares_of(levels)
        self._claims = [0.0] * levels
        # When each claim was last brought up to date, and when its owner last asked.
        self._settled = [now] * levels
        self._asked = [-math.inf] * levels
        # What the last grant took off each claim.
        self._drawn = [0.0] * levels
        # Of the offer just made: the tokens beyond its owner's claim and the others'
        # parts, those parts less the tokens, and the part of the rate by which they
        # grow.
        self._free = self._short = self._growth = 0.0
        self.resize(burst)

    def resize(self, burst: int) -> None:
        # A claim that cannot reach one event would never admit any.
        caps = [max(1.0, share * burst * _RESERVE) for share in self._shares]
        # Too small a burst is not divided: first come, first served.
        self._caps = caps if sum(caps) <= burst else [0.0] * len(caps)
        self.reserve = sum(self._caps)
        self._claims = [
            min(claim, cap) for claim, cap in zip(self._claims, self._caps, strict=True)
        ]

    def fill(self, p: int, now: float) -> None:
        """`p` was served from a pool that still covers every claim in full, so its own
        is full.
        """
        self._asked[p] = self._settled[p] = now
        self._claims[p] = self._caps[p]

    def offer(self, p: int, now: float, tokens: float, rate: float) -> int:
        """How many of `tokens` p may take now; `take` must follow."""
        guard = growth = 0.0
        for q, asked in enumerate(self._asked):
            if q != p and now - asked <= _ACTIVE_SECONDS:
                guard += self._caps[q] if q < p else self._grown(q, now, rate)
                growth += self._shares[q] if q > p else 0.0
        # Back from idleness one begins without a claim: what one had may be taken by
        # now.
        own = self._grown(p, now, rate) if now - self._asked[p] <= _ACTIVE_SECONDS else 0.0
        self._asked[p] = self._settled[p] = now
        self._claims[p] = own
        self._free, self._short, self._growth = (
            max(0.0, tokens - guard - own),
            guard - tokens,
            growth,
        )
        return int(max(own, tokens - guard) + _ROUNDING)

    def take(self, p: int, granted: int, rate: float) -> float:
        """Book what was taken of the last offer; returns the seconds until it could be
        one more.
        """
        self._drawn[p] = min(self._claims[p], max(0.0, granted - self._free))
        self._claims[p] -= self._drawn[p]
        if rate == 0.0:
            return math.inf
        # Whichever is first: the claim reaches one event, or the pool has one that
        # is free for all.
        by_claim = (1.0 - self._claims[p]) / (self._shares[p] * rate) if self._caps[p] else math.inf
        by_pool = (1.0 + self._short + granted) / ((1.0 - self._growth) * rate)
        return max(0.0, min(by_claim, by_pool))

    def give_back(self, p: int, n: int) -> None:
        """What came off the claim was taken last, and so goes back first."""
        back = min(float(n), self._drawn[p])
        self._drawn[p] -= back
        self._claims[p] = min(self._caps[p], self._claims[p] + back)

    def settle(self, now: float, rate: float) -> None:
        """Let the claims grow until now at the rate that was in force."""
        self._claims = [self._grown(q, now, rate) for q in range(len(self._claims))]
        self._settled = [now] * len(self._claims)

    def _grown(self, q: int, now: float, rate: float) -> float:
        if rate == math.inf:
            return self._caps[q]
        grown = self._shares[q] * rate * (now - self._settled[q])
        return min(self._caps[q], self._claims[q] + grown)
