"""The command: `python -m bench.overload --help`."""

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
from bench.overload.controllers import ABLATIONS, FAULT_LAWS, Oracle, Ours
from bench.overload.fleet import FLEETS, fleet
from bench.overload.kernel import Make, simulate
from bench.overload.metrics import figures, judge
from bench.overload.report import Results, markdown, plot, verdicts_table
from bench.overload.workload import scenarios

__all__ = ["main", "run"]

# Enough to see whether anything is badly wrong.
_QUICK = ("step_x2", "brown_out", "outage", "clock_steps")
# What is worth a curve.
_PLOTTED = ("oracle", "ours", "Vegas", "Gradient2", "CoDel", "table")
_SEEDS = 5
_EPILOG = """\
examples, from the root of the checkout, with PYTHONPATH=src or the package installed:
  python -m bench.overload --out bench/results --plots     the report that is kept: 11 min of CPU
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
        makes: dict[str, Make] = {"ours": Ours, **BASELINES}
        if not scenario.faulty:
            del makes["consecutive"]
        began = time.process_time()
        for seed in seeds:
            oracle = simulate(scenario, Oracle, seed)
            records = {
                "oracle": oracle,
                **{one: simulate(scenario, make, seed) for one, make in makes.items()},
            }
            if not scenario.faulty:  # a breaker by failures alone does nothing there
                records["consecutive"] = records["fixed batch"]
            found = {one: figures(records[one], oracle) for one in ("oracle", "ours", *BASELINES)}
            for one, figure in found.items():
                results.figures.setdefault(name, {}).setdefault(one, []).append(figure)
            verdict = judge(found["ours"], records["ours"], {one: found[one] for one in BASELINES})
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
                results.ablations.setdefault(name, {})[one] = figures(record, oracle)
        if verbose:
            print(f"{name}: {time.process_time() - began:.1f} s of CPU", file=sys.stderr)
    return results


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
    if args.out is None:
        print(text)
    else:
        (args.out / f"overload-{date}.md").write_text(text, encoding="utf-8")
        print(*verdicts_table(results), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
