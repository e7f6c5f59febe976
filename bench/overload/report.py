"""The report: Markdown, and plots where they are asked for."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.overload.fleet import FleetFigures
from bench.overload.metrics import CRITERIA, Figures, Summary, Verdict, median, summarise
from bench.overload.workload import Scenario

if TYPE_CHECKING:
    from bench.overload.kernel import Record

__all__ = ["Results", "markdown", "plot", "verdicts_table"]


class Results:
    """What was run, in the order in which it was."""

    def __init__(self, host: str, date: str, seeds: list[int]) -> None:
        self.host, self.date, self.seeds = host, date, seeds
        self.scenarios: dict[str, Scenario] = {}
        self.figures: dict[
            str, dict[str, list[Figures]]
        ] = {}  #: by scenario, by controller, one for each seed
        self.verdicts: dict[
            str, list[dict[str, Verdict]]
        ] = {}  #: of ours by scenario, one for each seed, by criterion
        self.ablations: dict[
            str, dict[str, Figures]
        ] = {}  #: by scenario, by ablation, with the first seed
        self.fleets: dict[str, list[FleetFigures]] = {}  #: one for each seed
        self.records: dict[str, dict[str, Record]] = {}  #: what plots need, with the first seed


def _seconds(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.3g}"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def _cell(name: str, one: Summary) -> str:
    if not one.runs:
        return "n/a"
    met = "pass" if one.met == one.runs else f"**FAIL {one.runs - one.met} of {one.runs}**"
    middle, worst = _number(one.median), _number(one.worst)
    note = f"; {one.note}" if one.note else ""
    return f"{met} {middle} ({worst}{note})"


def _number(value: float) -> str:
    """Counts and long times in full, else what tells 0.949 from 0.95."""
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3f}"


def verdicts_table(results: Results) -> list[str]:
    """Criteria by scenario: the median, and in brackets the worst seed.

    What failed with any seed is in bold.
    """
    rows = []
    for scenario, verdicts in results.verdicts.items():
        summary = summarise(verdicts)
        rows.append([scenario, *(_cell(name, summary[name]) for name in CRITERIA)])
    return _table(["scenario", *CRITERIA], rows)


_HEAD = [
    "",
    "of capacity",
    "settled (worst)",
    "p50 s",
    "p99 s (worst)",
    "p99.9 s",
    "p99 s of priority 1",
]
_HEAD += [
    "converged s",
    "recovered s",
    "transitions/min",
    "activations",
    "trips (false)",
    "leaks (per reset)",
]
_HEAD += ["lost by priority %", "inversions (of 1)"]
_HEAD += ["excess"]


def _figures_row(name: str, runs: list[Figures], dead: bool) -> list[str]:
    one = median(runs)
    several = len(runs) > 1
    return [
        name,
        f"{one.of_capacity:.3f}",
        f"{one.settled:.3f}" + (f" ({min(run.settled for run in runs):.3f})" if several else ""),
        _seconds(one.p50),
        _seconds(one.p99) + (f" ({_seconds(max(run.p99 for run in runs))})" if several else ""),
        _seconds(one.p999),
        _seconds(one.urgent_p99),
        _seconds(one.converged),
        _seconds(one.recovery) if dead else "-",
        f"{one.transitions:.1f}",
        f"{one.activations}",
        f"{one.trips} ({one.false_trips})",
        f"{one.leaks} ({one.leaks_per_reset})" if dead else "-",
        " / ".join(f"{100 * share:.0f}" for share in one.lost),
        f"{one.inversions:,} ({one.urgent_inversions:,})",
        f"{max(run.excess for run in runs):.2f}",
    ]


def _ablations(by_name: dict[str, Figures], ours: Figures, dead: bool) -> list[str]:
    """In one line those that changed nothing; the others beside ours, same seed."""
    same = [name for name, one in by_name.items() if one == ours]
    rows = [_figures_row("ours", [ours], dead)]
    rows += [_figures_row(name, [one], dead) for name, one in by_name.items() if name not in same]
    lines = ["Ablations, with the first seed:", "", *_table(_HEAD, rows)]
    return [*lines, f"No difference at all: {', '.join(same)}.", ""] if same else lines


def _spans(seeds: list[int]) -> str:
    """As in: 0 to 4 and 10 to 19."""
    spans: list[list[int]] = []
    for seed in seeds:
        if spans and seed == spans[-1][-1] + 1:
            spans[-1].append(seed)
        else:
            spans.append([seed])
    return " and ".join(f"{one[0]} to {one[-1]}" for one in spans)


def markdown(results: Results, plots: list[Path] = []) -> str:  # noqa: B006 - only read
    summaries = {name: summarise(verdicts) for name, verdicts in results.verdicts.items()}
    whole = sum(
        all(one.met == one.runs for one in summary.values()) for summary in summaries.values()
    )
    lines = [
        f"# Overload simulation, {results.date}",
        "",
        f"Host: {results.host}. Seeds {_spans(results.seeds)}; virtual time,",
        "so the host changes nothing but the time it takes to run. How to read it, and how "
        "it is made: docs/overload.md.",
        "",
        "## Criteria",
        "",
        f"All met with every seed in {whole} of {len(summaries)} scenarios. Each cell: the "
        "median (the worst seed).",
        "",
        *verdicts_table(results),
    ]
    missed = [
        f"- {scenario}, seed {seed}: {name} {verdict.value:.3f} ({verdict.note})"
        for scenario, verdicts in results.verdicts.items()
        for seed, by_name in zip(results.seeds, verdicts, strict=True)
        for name, verdict in by_name.items()
        if verdict.met is False
    ]
    if missed:
        lines += ["Not met:", "", *missed]
    lines += [""]
    lines += [f"![{path.stem}]({path.name})" for path in plots]
    for name, by_name in results.figures.items():
        scenario = results.scenarios[name]
        dead = bool(scenario.dead)
        lines += ["", f"## {name}", "", f"{scenario.what[0].upper()}{scenario.what[1:]}.", ""]
        lines += _table(_HEAD, [_figures_row(one, runs, dead) for one, runs in by_name.items()])
        if name in results.ablations:
            lines += _ablations(results.ablations[name], by_name["ours"][0], dead)
    if results.fleets:
        lines += ["## fleet: 100 clients trip together", ""]
        rows = []
        for name, runs in results.fleets.items():
            middle = {
                field: statistics.median(getattr(run, field) for run in runs)
                for field in FleetFigures.__slots__
            }
            rows.append(
                [
                    name,
                    f"{middle['peak']:.0f} ({max(run.peak for run in runs)})",
                    f"{middle['leaks']:.0f}",
                    f"{middle['trips']:.0f}",
                    f"{_seconds(middle['recovery'])} "
                    f"({_seconds(max(run.recovery for run in runs))})",
                    f"{middle['goodput']:.3f}",
                ]
            )
        head = [
            "",
            "peak calls in 0.1 s (worst)",
            "leaks",
            "trips",
            "recovered s (worst)",
            "calls that succeeded",
        ]
        lines += _table(head, rows)
    return "\n".join(lines)


def plot(results: Results, base: Path) -> list[Path]:
    """Curves by second, and delay against goodput, as PNG; returns the paths. Needs
    matplotlib: the `bench` extra.

    As SVG the curves take more than a megabyte, which a repository should not keep.
    """
    import matplotlib  # type: ignore[import-not-found, unused-ignore]

    matplotlib.use("Agg")
    from matplotlib import pyplot  # type: ignore[import-not-found, unused-ignore]

    curves, trade = (
        base.with_name(f"{base.name}-curves.png"),
        base.with_name(f"{base.name}-delay-goodput.png"),
    )
    names = list(results.records)
    figure, axes = pyplot.subplots(len(names), 2, figsize=(14, 2.4 * len(names)), squeeze=False)
    for (left, right), name in zip(axes, names, strict=True):
        _curves(left, right, results.records[name])
        left.set_title(f"{name}: delivered, thousand events/s", fontsize=9)
        right.set_title(f"{name}: age of the oldest waiting event, s", fontsize=9)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(curves, dpi=50)
    pyplot.close(figure)

    columns = 3
    lines = -(-len(names) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(14, 3.4 * lines), squeeze=False)
    for place, axis in enumerate(axes.flat):
        if place >= len(names):
            axis.axis("off")
            continue
        _trade(axis, results.figures[names[place]])
        axis.set_title(names[place], fontsize=9)
    figure.supxlabel("settled goodput / the oracle's, the worst span")
    figure.supylabel("p99 of the queue delay, s")
    figure.tight_layout()
    figure.savefig(trade, dpi=80)
    pyplot.close(figure)
    return [trade, curves]


def _curves(left: Any, right: Any, records: dict[str, Record]) -> None:
    for controller, record in records.items():
        seconds = range(len(record.goodput))
        width = 1.6 if controller == "ours" else 0.7
        left.plot(seconds, [n / 1e3 for n in record.goodput], label=controller, linewidth=width)
        right.plot(
            seconds, [max(wait, 1e-3) for wait in record.oldest], label=controller, linewidth=width
        )
    right.set_yscale("log")


def _trade(axis: Any, by_name: dict[str, list[Figures]]) -> None:
    """One point for each controller and seed: right and low is good."""
    for name, runs in by_name.items():
        goodput, delay = [run.settled for run in runs], [max(run.p99, 1e-3) for run in runs]
        axis.scatter(
            goodput, delay, s=28 if name == "ours" else 10, marker="*" if name == "ours" else "o"
        )
        axis.annotate(name, (statistics.median(goodput), statistics.median(delay)), fontsize=6)
    axis.axvline(0.95, linewidth=0.5, color="grey")
    axis.set_yscale("log")
