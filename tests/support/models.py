"""Tests by examples run twice: a share of the examples each time, all as a proof."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine

__all__ = ["given_in_part", "share_and_proof"]


def given_in_part(
    examples: int, *arguments: Any, **named: Any
) -> Callable[[Callable[..., None]], Callable[[bool], None]]:
    """`given` for a test that takes seconds: a share of the examples, or all.

    A quarter, and marked `proof` all (the fixture `in_full`).
    """

    def decorate(body: Callable[..., None]) -> Callable[[bool], None]:
        def test(in_full: bool) -> None:
            count = examples if in_full else max(examples // 4, 10)
            part: Callable[..., Any] = given(*arguments, **named)
            settings(max_examples=count)(part(body))()

        test.__doc__ = body.__doc__
        return test

    return decorate


def share_and_proof(
    machine: type[RuleBasedStateMachine], examples: int, steps: int
) -> tuple[type[unittest.TestCase], type[unittest.TestCase]]:
    """Two tests of a machine: a sixth of the examples, and all, marked `proof`."""

    class Share(machine.TestCase):  # type: ignore[name-defined, misc]
        settings = settings(
            max_examples=max(examples // 6, 10), stateful_step_count=steps, deadline=None
        )

    @pytest.mark.proof
    class Proof(machine.TestCase):  # type: ignore[name-defined, misc]
        settings = settings(max_examples=examples, stateful_step_count=steps, deadline=None)

    return Share, Proof
