"""The report: Markdown, and plots where they are asked for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from bench.overload.fleet import FleetFigures
from bench.overload.metrics import CRITERIA, Figures, Verdict
from bench.overload.workload import Scenario

if TYPE_CHECKING:
    from bench.overload.kernel import Record

__all__ = ["Results", "markdown", "plot", "verdicts_table"]


class Results:
    """What was run, in the order in which it was."""

    def __init__(self, host: str, date: str, seed: int) -> None:
        self.host, self.date, self.seed = host, date, seed
        self.scenarios: dict[str, Scenario] = {}
        self.figures: dict[str, dict[str, Figures]] = {}  #: by scenario, by controller
        self.verdicts: dict[str, dict[str, dict[str, Verdict]]] = {}  #: by controller, by scenario, by criterion
        self.ablations: dict[str, dict[str, Figures]] = {}  #: by scenario, by ablation
        self.fleets: dict[str, FleetFigures] = {}
        self.records: dict[str, dict[str, Record]] = {}  #: what plots need


def _seconds(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.3g}"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows), ""]


def verdicts_table(results: Results, controller: str) -> list[str]:
    """Criteria by scenario: what failed is in bold."""
    rows = []
    for scenario, verdicts in results.verdicts[controller].items():
        cells = []
        for name in CRITERIA:
            verdict = verdicts[name]
            met = {True: "pass", False: "**FAIL**", None: "n/a"}[verdict.met]
            cells.append(f"{met} ({verdict.figure})" if verdict.met is not None else met)
        rows.append([scenario, *cells])
    return _table(["scenario", *CRITERIA], rows)


_HEAD = ["", "of capacity", "settled", "p50 s", "p99 s", "p99.9 s", "p99 s of priority 1", "converged s", "recovered s"]
_HEAD += ["transitions/min", "activations", "trips (false)", "leaks (per reset)", "lost by priority %", "inversions (of 1)"]
_HEAD += ["excess"]


def _figures_table(by_name: dict[str, Figures], dead: bool) -> list[str]:
    rows = [
        [
            name,
            f"{one.of_capacity:.3f}",
            f"{one.settled:.3f}",
            _seconds(one.p50),
            _seconds(one.p99),
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
            f"{one.excess:.2f}",
        ]
        for name, one in by_name.items()
    ]
    return _table(_HEAD, rows)


def markdown(results: Results) -> str:
    lines = [
        f"# Overload simulation, {results.date}",
        "",
        f"Host: {results.host}. Seed {results.seed}; virtual time, so the host changes nothing but the time it takes to run.",
        "How to read it, and how it is made: docs/overload.md.",
        "",
    ]
    for controller, by_scenario in results.verdicts.items():
        passed = sum(all(v.met is not False for v in one.values()) for one in by_scenario.values())
        lines += [f"## Criteria: {controller}", "", f"All met in {passed} of {len(by_scenario)} scenarios.", ""]
        lines += verdicts_table(results, controller)
    for name, by_name in results.figures.items():
        scenario = results.scenarios[name]
        lines += [f"## {name}", "", f"{scenario.what[0].upper()}{scenario.what[1:]}.", ""]
        lines += _figures_table(by_name, bool(scenario.dead))
        if results.ablations.get(name):
            lines += ["Ablations, each against `ours + bound`:", ""]
            lines += _figures_table(results.ablations[name], bool(scenario.dead))
    if results.fleets:
        lines += ["## fleet: 100 clients trip together", ""]
        rows = [
            [name, f"{one.peak}", f"{one.leaks}", f"{one.trips}", _seconds(one.recovery), f"{one.goodput:.3f}"]
            for name, one in results.fleets.items()
        ]
        lines += _table(["", "peak calls in 0.1 s", "leaks", "trips", "recovered s", "calls that succeeded"], rows)
    return "\n".join(lines)


def plot(results: Results, path: Path) -> None:
    """Goodput and the longest wait by second, one row for each scenario. Needs matplotlib: the `bench` extra."""
    import matplotlib  # type: ignore[import-not-found, unused-ignore]

    matplotlib.use("Agg")
    from matplotlib import pyplot  # type: ignore[import-not-found, unused-ignore]

    names = list(results.records)
    figure, axes = pyplot.subplots(len(names), 2, figsize=(14, 2.6 * len(names)), squeeze=False)
    for (left, right), name in zip(axes, names, strict=True):
        for controller, record in results.records[name].items():
            seconds = range(len(record.goodput))
            left.plot(seconds, [n / 1e3 for n in record.goodput], label=controller, linewidth=1)
            right.plot(seconds, [max(wait, 1e-3) for wait in record.oldest], label=controller, linewidth=1)
        left.set_title(f"{name}: delivered, thousand events/s", fontsize=9)
        right.set_title(f"{name}: age of the oldest waiting event, s", fontsize=9)
        right.set_yscale("log")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)
