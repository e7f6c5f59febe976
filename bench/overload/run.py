"""The command. `python -m bench.overload [--scenario NAME]... [--quick] [--no-ablations] [--seed N] [--out DIR] [--plots]`."""

# ruff: noqa: E402 - as a script this file has to find its own package first

from __future__ import annotations

import argparse
import datetime
import platform
import sys
import time
from functools import partial
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # as a script: neither the checkout nor the package need be installed
    sys.path[:0] = [str(_ROOT), str(_ROOT / "src")]

from bench.overload.baselines import BASELINES
from bench.overload.controllers import ABLATIONS, Laws, Oracle, Ours
from bench.overload.fleet import FLEETS, fleet
from bench.overload.kernel import Make, simulate
from bench.overload.metrics import figures, judge
from bench.overload.report import Results, markdown, plot, verdicts_table
from bench.overload.workload import scenarios

__all__ = ["OURS", "main", "run"]

#: The two ways in which ours is judged: wired as the library is today, and with the delay bound on top.
OURS: dict[str, Make] = {"ours": Ours, "no bound": partial(Ours, laws=Laws(delay_target=None))}
# Enough to see whether anything is badly wrong.
_QUICK = ("step_x2", "brown_out", "outage", "clock_steps")
# What is worth a curve.
_PLOTTED = ("oracle", "ours", "ours + bound", "Vegas", "Gradient2", "table")


def run(names: list[str], seed: int, ablations: bool, host: str, date: str, verbose: bool = False) -> Results:
    """Run scenarios, each under every controller."""
    results = Results(host, date, seed)
    makes: dict[str, Make] = {**OURS, **BASELINES}
    every = scenarios()
    for name in names:
        scenario = results.scenarios[name] = every[name]
        began = time.process_time()
        oracle = simulate(scenario, Oracle, seed)
        records = {"oracle": oracle, **{one: simulate(scenario, make, seed) for one, make in makes.items()}}
        results.figures[name] = {one: figures(record, oracle) for one, record in records.items()}
        baselines = {one: results.figures[name][one] for one in BASELINES}
        for one in OURS:
            verdicts = judge(results.figures[name][one], records[one], baselines)
            results.verdicts.setdefault(one, {})[name] = verdicts
        results.records[name] = {one: record for one, record in records.items() if one in _PLOTTED}
        if ablations:
            runs = {one: simulate(scenario, partial(Ours, laws=laws), seed) for one, laws in ABLATIONS.items()}
            results.ablations[name] = {one: figures(record, oracle) for one, record in runs.items()}
        if verbose:
            print(f"{name}: {time.process_time() - began:.1f} s of CPU", file=sys.stderr)
    return results


def main(argv: list[str] | None = None) -> int:
    every = list(scenarios())
    parser = argparse.ArgumentParser(prog="python -m bench.overload", description="The policies under overload, in virtual time.")
    parser.add_argument("--scenario", action="append", choices=every, help="only this one; may be given more than once")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(_QUICK)}, without ablations")
    parser.add_argument("--no-ablations", action="store_true", help="leave the ablations out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a directory for the report (default: print it)")
    parser.add_argument("--plots", action="store_true", help="an SVG beside the report; needs matplotlib and --out")
    args = parser.parse_args(argv)
    if args.plots and args.out is None:
        parser.error("--plots needs --out")

    names = args.scenario or (list(_QUICK) if args.quick else every)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    host = f"{platform.node()}, {platform.machine()}, {platform.python_implementation()} {platform.python_version()}"
    results = run(names, args.seed, not (args.quick or args.no_ablations), host, date, verbose=True)
    results.fleets = {name: fleet(config, args.seed) for name, config in FLEETS.items()}
    text = markdown(results)
    if args.out is None:
        print(text)
    else:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"overload-{date}.md").write_text(text, encoding="utf-8")
        if args.plots:
            plot(results, args.out / f"overload-{date}.svg")
        for controller in results.verdicts:
            print(controller, *verdicts_table(results, controller), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
