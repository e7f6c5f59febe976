"""Markdown for the numbers in flight: the criterion, and a line for each span."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.overload.in_flight import ENOUGH, GRACE, Figures, Span

__all__ = ["in_flight_markdown"]

_HEAD = (
    *("scenario", "seconds", "best by shape", "best fixed", "goodput (worst)", "met"),
    *("number in use", "latency", "converged s (worst)"),
)


def in_flight_markdown(every: Sequence[Figures]) -> list[str]:
    """Lines of the section; what failed with any seed is in bold."""
    met = sum(one.met for one in every)
    lines = [
        "## Calls in flight",
        "",
        f"Goodput at least {ENOUGH:g} of the best fixed number's, from {GRACE} s after the",
        f"start or a change, with every seed: in {met} of {len(every)} scenarios. Medians over",
        "the seeds; latency is beside that of the best fixed number.",
        "",
        "| " + " | ".join(_HEAD) + " |",
        "|" + "---|" * len(_HEAD),
    ]
    rows = [_row(one.scenario.name, span) for one in every for span in one.spans]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", "| scenario | what | shape |", "|---|---|---|"]
    lines += [f"| {s.name} | {s.what} | {s.shape} |" for s in (one.scenario for one in every)]
    return [*lines, ""]


def _row(name: str, span: Span) -> list[str]:
    runs = len(span.goodput)
    met = "pass" if span.met == runs else f"**FAIL {runs - span.met} of {runs}**"
    return [
        name,
        f"{span.start} to {span.end}",
        f"{span.sink}",
        f"{span.fixed}",
        f"{statistics.median(span.goodput):.3f} ({min(span.goodput):.3f})",
        met,
        f"{statistics.median(span.number):.1f}",
        f"{statistics.median(span.latency):.2f}",
        f"{statistics.median(span.converged):.0f} ({max(span.converged):.0f})",
    ]
