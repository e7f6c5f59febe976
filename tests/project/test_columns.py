"""Prose is 88 columns wide where ruff does not look: in Cython and in Markdown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

COLUMNS = 88
# What a line break would spoil: tables, code, links, headings.
_WHOLE = re.compile(r"\||    |>>>|#|.*(?:https?://|\]\()")


def files_of(*endings: str) -> list[Path]:
    return sorted(
        path
        for folder in ("src", "docs", "deploy")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in endings
    )


def long_prose_of(path: Path) -> list[int]:
    """Numbers of the lines with a comment, or within a docstring, that are too long."""
    found, quoted, fenced = [], False, False
    is_c = False  # the string is C++, for the compiler
    before = ""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if path.suffix == ".md":
            fenced ^= line.lstrip().startswith("```")
            is_prose = not fenced and not _WHOLE.match(line)
        else:
            if not quoted and '"""' in line:
                is_c = before.startswith("cdef extern")
            is_prose = quoted or bool(re.match(r'\s*(# (?!cython: )|r?""")', line))
            is_prose = is_prose and not (is_c and (quoted or '"""' in line))
            quoted ^= line.count('"""') % 2 == 1
            before = line.strip() or before
        if is_prose and len(line) > COLUMNS:
            found.append(number)
    return found


@pytest.mark.parametrize(
    "path",
    [*files_of(".pyx", ".pxd", ".md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_prose_fits(path: Path) -> None:
    assert long_prose_of(path) == []


def test_long_prose_is_seen(tmp_path: Path) -> None:
    long = "word " * 20
    core = tmp_path / "core.pyx"
    code = f'cdef extern from *:\n"""\n{long}\n"""\n'
    core.write_text(f'cdef int x = 1  # {long}\n# {long}\n"""short\n{long}\n"""\n{long}\n{code}')
    assert long_prose_of(core) == [2, 4]
    page = tmp_path / "page.md"
    page.write_text(f"{long}\n| {long} |\n```\n{long}\n```\n    {long}\n")
    assert long_prose_of(page) == [1]
