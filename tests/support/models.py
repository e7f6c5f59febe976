"""Model tests run twice: a share of the examples each time, all of them as a proof."""

from __future__ import annotations

import unittest

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine

__all__ = ["share_and_proof"]


def share_and_proof(
    machine: type[RuleBasedStateMachine], examples: int, steps: int
) -> tuple[type[unittest.TestCase], type[unittest.TestCase]]:
    """Two tests of a machine: with a sixth of the examples, and with all, marked
    `proof`.
    """

    class Share(machine.TestCase):  # type: ignore[name-defined, misc]
        settings = settings(
            max_examples=max(examples // 6, 10), stateful_step_count=steps, deadline=None
        )

    @pytest.mark.proof
    class Proof(machine.TestCase):  # type: ignore[name-defined, misc]
        settings = settings(max_examples=examples, stateful_step_count=steps, deadline=None)

    return Share, Proof
