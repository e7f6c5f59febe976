"""README and docs are run as doctests, as are the examples in docstrings; links lead
to what they name.
"""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import tempfile
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


@pytest.fixture(autouse=True)
def what_examples_leave_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader's buffer is there to stay; 300 MB of it, in each run of the tests."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


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


ARCHITECTURE = ROOT / "docs" / "architecture.md"
PLACE = re.compile(r"\[`([\w.]+)`\]\((\.\./src/[^)]+)\)")
PLACES = PLACE.findall(ARCHITECTURE.read_text())


@pytest.mark.parametrize(("name", "target"), PLACES, ids=[name for name, _ in PLACES])
def test_what_architecture_points_to_is_defined_there(name: str, target: str) -> None:
    """Of Python and of Cython: a class, a function, or a name that is assigned to."""
    source = (ARCHITECTURE.parent / target).read_text()
    for part in name.split("."):
        defined = rf"^\s*(?:(?:async )?def|class|cp?def\b.*?) \*?{part}\b|^{part}\b.*="
        assert re.search(defined, source, re.MULTILINE), f"{target} defines no {part}"


def test_each_question_has_one_place() -> None:
    text = ARCHITECTURE.read_text()
    rows = text.partition("## Where to find it")[2].partition("\n## ")[0].splitlines()
    questions = [row for row in rows if row.startswith("|")][2:]
    assert len(questions) > 10
    for row in questions:
        assert PLACE.search(row), f"no place: {row}"


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
