"""pytest loads its plugins by name: they come with each extra that brings pytest."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from itertools import pairwise

from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]


def distribution(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return found[0]


def test_the_plugins_come_with_pytest() -> None:
    [name] = [
        name for name, needs in EXTRAS.items() if any(distribution(n) == "pytest" for n in needs)
    ]
    options = PROJECT["tool"]["pytest"]["ini_options"]["addopts"].split()
    loaded = [value for option, value in pairwise(options) if option == "-p"]
    assert loaded
    for plugin in loaded:
        [point] = metadata.entry_points(group="pytest11", name=plugin)
        assert point.dist is not None
        assert point.dist.name in {distribution(need) for need in EXTRAS[name]}, plugin
