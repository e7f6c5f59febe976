"""The command: `python -m bench.overload --help`."""

# ruff: noqa: E402 - as a script this file has to find its own package first

from __future__ import annotations

import argparse
import datetime
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # as a script: neither the checkout nor the package need be installed
    sys.path[:0] = [str(_ROOT), str(_ROOT / "src")]

from bench.overload.baselines import BASELINES
from bench.overload.controllers import ABLATIONS, FAULT_LAWS, Oracle, Ours
from bench.overload.fleet import FLEETS, fleet
from bench.overload.in_flight import SCENARIOS as IN_FLIGHT
from bench.overload.in_flight import compare
from bench.overload.in_flight_report import in_flight_markdown
from bench.overload.kernel import Make, Record, simulate
from bench.overload.metrics import Figures, Verdict, figures, judge
from bench.overload.report import Results, markdown, plot, verdicts_table
from bench.overload.workload import Scenario, scenarios

__all__ = ["criteria", "main", "run"]

# Enough to see whether anything is badly wrong.
_QUICK = ("step_x2", "brown_out", "outage", "clock_steps")
_QUICK_IN_FLIGHT = ("falling_8", "falling_8_both_laws")
# What is worth a curve.
_PLOTTED = ("oracle", "ours", "Vegas", "Gradient2", "CoDel", "table")
_SEEDS = 5
# What the criteria are judged with where nothing else is asked for: the seeds with
# which constants were chosen, and ten others.
_CRITERIA_SEEDS = (*range(_SEEDS), *range(10, 20))
# A baseline comes into question as one that delivers as much and waits less where with
# the first seed it had this share of our goodput, and waited so many times as long.
_NEAR_GOODPUT, _NEAR_DELAY = 0.98, 1.5
_EPILOG = """\
examples, from the root of the checkout, with PYTHONPATH=src or the package installed:
  python -m bench.overload --out bench/results --plots     the report that is kept: 11 min of CPU
  python -m bench.overload --criteria                      whether criteria are met, with 15 seeds
  python -m bench.overload --quick                         four scenarios, one seed: ten seconds
  python -m bench.overload --scenario outage --seeds 3     one scenario, three seeds

How to read the report: docs/overload.md.
"""


def run(
    names: list[str], seeds: list[int], ablations: bool, host: str, date: str, verbose: bool = False
) -> Results:
    """Run scenarios, each under every controller and with every seed.

    Ablations with the first seed only.
    """
    results = Results(host, date, seeds)
    every = scenarios()
    for name in names:
        scenario = results.scenarios[name] = every[name]
        began = time.process_time()
        for seed in seeds:
            records, found, verdict = _judged(scenario, seed, list(BASELINES))
            for one, figure in found.items():
                results.figures.setdefault(name, {}).setdefault(one, []).append(figure)
            results.verdicts.setdefault(name, []).append(verdict)
            if seed != seeds[0]:
                continue
            results.records[name] = {
                one: record for one, record in records.items() if one in _PLOTTED
            }
            # What deals with failures cannot show where nothing ever fails.
            wanted = {
                one: laws
                for one, laws in ABLATIONS.items()
                if scenario.faulty or one not in FAULT_LAWS
            }
            for one, laws in wanted.items() if ablations else ():
                record = simulate(scenario, partial(Ours, laws=laws), seed)
                results.ablations.setdefault(name, {})[one] = figures(record, records["oracle"])
        if verbose:
            print(f"{name}: {time.process_time() - began:.1f} s of CPU", file=sys.stderr)
    return results


def _records(scenario: Scenario, seed: int, baselines: list[str]) -> dict[str, Record]:
    """The oracle, ours, and some of the baselines."""
    makes: dict[str, Make] = {"oracle": Oracle, "ours": Ours}
    makes |= {name: BASELINES[name] for name in baselines}
    done: dict[str, Record] = {}
    records: dict[str, Record] = {}
    for name in makes:
        # A breaker by failures alone does nothing where none fails.
        same = "fixed batch" if name == "consecutive" and not scenario.faulty else name
        if same not in done:
            done[same] = simulate(scenario, makes.get(same, BASELINES["fixed batch"]), seed)
        records[name] = done[same]
    return records


def _judged(
    scenario: Scenario, seed: int, rivals: list[str]
) -> tuple[dict[str, Record], dict[str, Figures], dict[str, Verdict]]:
    """Records and figures by controller, and the verdict on ours beside these."""
    records = _records(scenario, seed, rivals)
    found = {one: figures(record, records["oracle"]) for one, record in records.items()}
    verdict = judge(found["ours"], records["ours"], {one: found[one] for one in rivals})
    return records, found, verdict


def criteria(name: str, seeds: list[int]) -> list[dict[str, Verdict]]:
    """Verdicts on ours in one scenario, by seed; after the first seed beside those
    baselines only that come into question.
    """
    scenario = scenarios()[name]
    rivals = list(BASELINES)
    verdicts = []
    for seed in seeds:
        _, found, verdict = _judged(scenario, seed, rivals)
        verdicts.append(verdict)
        ours = found["ours"]
        if seed == seeds[0]:
            rivals = [
                one
                for one in rivals
                if found[one].goodput >= _NEAR_GOODPUT * ours.goodput
                and found[one].p99 <= _NEAR_DELAY * ours.p99
            ]
    return verdicts


def _in_flight(seeds: list[int], quick: bool) -> list[str]:
    names = _QUICK_IN_FLIGHT if quick else IN_FLIGHT
    with ProcessPoolExecutor() as pool:
        figures = pool.map(partial(compare, seeds=seeds), [IN_FLIGHT[name] for name in names])
        return in_flight_markdown(list(figures))


def _put(text: str, folder: Path | None, name: str) -> None:
    if folder is None:
        print(text)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    every = list(scenarios())
    parser = argparse.ArgumentParser(
        prog="python -m bench.overload",
        description=(
            "Drive the policies through overload in virtual time, beside published "
            "algorithms, and judge them."
        ),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--scenario",
        action="append",
        choices=every,
        metavar="NAME",
        help=f"only this one, repeatable: {', '.join(every)}",
    )
    add(
        "--quick",
        action="store_true",
        help=f"one seed, no ablations; without --scenario only {', '.join(_QUICK)}",
    )
    add(
        "--no-ablations", action="store_true", help="do not run ours again with one law off in turn"
    )
    add(
        "--in-flight",
        action="store_true",
        help="only the law of how many calls are in flight; with --out: in-flight-<date>.md",
    )
    add(
        "--criteria",
        action="store_true",
        help=(
            "only whether the criteria are met; with --out: overload-criteria-<date>.md "
            f"(default: seeds 0 to {_SEEDS - 1} and 10 to 19)"
        ),
    )
    add("--seed", type=int, default=0, metavar="N", help="the first seed (default: 0)")
    add(
        "--seeds",
        type=int,
        metavar="N",
        help=f"how many seeds: medians and the worst are reported (default: {_SEEDS})",
    )
    add(
        "--out", type=Path, metavar="DIR", help="write overload-<date>.md there (default: print it)"
    )
    add(
        "--plots",
        action="store_true",
        help="with --out: plots beside the report, as PNG; needs matplotlib (extra: bench)",
    )
    args = parser.parse_args(argv)
    if args.plots and args.out is None:
        parser.error("--plots needs --out")
    count = args.seeds if args.seeds is not None else 1 if args.quick else _SEEDS
    if count < 1:
        parser.error("--seeds must be 1 or more")

    names = args.scenario or (list(_QUICK) if args.quick else every)
    seeds = list(range(args.seed, args.seed + count))
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    host = f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}"
    if args.in_flight:
        lines = [
            f"# Calls in flight, {date}",
            "",
            f"Host: {host}. Seeds {seeds[0]} to {seeds[-1]};",
        ]
        lines += ["virtual time. How to read it: docs/overload.md.", ""]
        text = "\n".join([*lines, *_in_flight(seeds, args.quick)])
        _put(text, args.out, f"in-flight-{date}.md")
        return 0
    if args.criteria:
        if args.seeds is None:
            seeds = list(_CRITERIA_SEEDS)
        results = Results(host, date, seeds)
        with ProcessPoolExecutor() as pool:
            verdicts = pool.map(partial(criteria, seeds=seeds), names)
            results.verdicts = dict(zip(names, verdicts, strict=True))
        _put(markdown(results), args.out, f"overload-criteria-{date}.md")
        return 0
    results = run(names, seeds, not (args.quick or args.no_ablations), host, date, verbose=True)
    results.fleets = {
        name: [fleet(config, seed) for seed in seeds] for name, config in FLEETS.items()
    }
    plots = []
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        if args.plots:
            plots = plot(results, args.out / f"overload-{date}")
    text = markdown(results, plots)
    if not args.scenario:
        text = "\n".join([text, *_in_flight(seeds, args.quick)])
    if args.out is None:
        print(text)
    else:
        (args.out / f"overload-{date}.md").write_text(text, encoding="utf-8")
        print(*verdicts_table(results), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
