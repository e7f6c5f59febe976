"""Patterns of a configuration: none stops the process, whatever a line holds."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpressure.sources.line_patterns import (
    SEARCHED_BYTES,
    compile_pattern,
    hostile_lines,
    refuse_endless,
)
from backpressure.sources.priority_rules import PriorityRules, parse_rule

FINE = [
    "ERROR",
    ".*ERROR.*",
    " 50[0-9] ",
    r'^\S+ \S+ \S+ \[[^\]]+\] "\w+ [^"]*" 5\d\d',
    r"(?:\d+\.)+\d+",
    r"(?:[^,]*,){20}P",
    r"\bfoo\b.*\bbar\b",
    r'"level":\s*"(error|fatal)"',
    r"(?i)warn(ing)?",
    r"(a++)++b",
    r"(?>a+)+b",
    r"\s*$",
    "",
]
ENDLESS = [
    r"(a+)+$",
    r"^(\w+\s?)*$",
    r"(x|x)*y",
    r"(.*)(.*)(.*)z$",
    r"GET ([a-z]+)*=",
    r"(a|aa)+$",
    r"(?=(b+)+$)b",
    r"(x)?(?(1)(y+)+$|(z+)+$)",
]


def test_patterns_that_take_their_time_but_end_are_fine() -> None:
    refuse_endless(map(compile_pattern, FINE))


@pytest.mark.parametrize("text", ENDLESS)
def test_one_that_may_search_for_ever_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        refuse_endless([*map(compile_pattern, FINE), compile_pattern(text)])


@pytest.mark.parametrize("text", FINE + ENDLESS)
def test_hostile_lines_are_no_longer_than_what_is_searched(text: str) -> None:
    lines = list(hostile_lines(compile_pattern(text)))
    assert all(len(line) <= SEARCHED_BYTES for line in lines)
    assert lines or not re.search(r"[*+}]", text)


@given(st.from_regex(re.compile(r"(\\[wds]|[ab]|\[\^?ab\]|\.){1,4}([*+?]|\{1,3\})?", re.ASCII)))
def test_whatever_compiles_has_its_lines(text: str) -> None:
    try:
        pattern = compile_pattern(text)
    except ValueError:
        return
    for line in hostile_lines(pattern):
        assert len(line) <= SEARCHED_BYTES


def test_a_rule_searches_the_beginning_of_a_line() -> None:
    rules = PriorityRules([parse_rule("x=1")])
    inside, beyond = b"." * (SEARCHED_BYTES - 1) + b"x", b"." * SEARCHED_BYTES + b"x"
    split = rules.split(memoryview(inside + b"\n" + beyond + b"\n"))
    assert split == [(1, [inside]), (3, [beyond])]
