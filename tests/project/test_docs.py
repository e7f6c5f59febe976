"""README and docs are run as doctests, as are the examples in docstrings; links lead
somewhere.
"""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import backpressure
import ringbuf
from tests.support.paths import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_in_pages(page: Path) -> None:
    result = doctest.testfile(str(page), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
    if page.name == "README.md":
        assert result.attempted > 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_in_pages(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), (
                f"{page.name} links to {target}, which is not there"
            )


def modules() -> list[str]:
    names = []
    for package in (backpressure, ringbuf):
        names.append(package.__name__)
        names += [
            one.name for one in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
        ]
    return [name for name in names if not name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    # Compiled methods carry their docstrings, but doctest looks only at what it takes
    # for Python functions.
    found = doctest.DocTestFinder(recurse=True).find(module, name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in found:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_the_examples_of_compiled_classes_are_found() -> None:
    for example in (ringbuf.MessageRing, ringbuf.TokenBucket, backpressure.BufferManager):
        assert doctest.DocTestFinder(recurse=False).find(example)[0].examples
