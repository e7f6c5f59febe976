"""The explorer of interleavings finds what is wrong with small programs, and visits
every state.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest

from tests.support.interleave import (
    DEAD,
    Counterexample,
    Memory,
    Violation,
    add,
    exchange,
    explore,
    get,
    ghost,
    load,
    lock,
    put,
    store,
)

pytestmark = pytest.mark.single_thread

Steps = Generator[tuple[Any, ...], Any, None]


def named(*starts: Callable[[], Steps]) -> list[tuple[str, Callable[[], Steps]]]:
    return [(f"participant {number}", start) for number, start in enumerate(starts)]


def test_a_lost_update_is_found_and_told() -> None:
    memory = Memory()
    count = memory.word("count", 0)

    def counts() -> Steps:
        seen = yield load(count)
        yield store(count, seen + 1)

    def at_end(words: tuple[Any, ...]) -> None:
        if words[count] != 2:
            raise Violation("an update is lost")

    with pytest.raises(Counterexample, match="an update is lost") as found:
        explore(memory, named(counts, counts), at_end=at_end)
    steps = [line.split("  ")[-1] for line in found.value.schedule]
    assert sorted(steps) == ["count := 1"] * 2 + ["count is 0"] * 2
    names = [line[:14].strip() for line in found.value.schedule]
    assert set(names) - {""} == {"participant 0", "participant 1"}


def test_an_exchange_loses_nothing() -> None:
    memory = Memory()
    count = memory.word("count", 0)
    ends = []

    def counts() -> Steps:
        seen = yield load(count)
        while True:
            found = yield exchange(count, seen, seen + 1)
            if found == seen:
                return
            seen = found

    report = explore(
        memory, named(counts, counts, counts), at_end=lambda words: ends.append(words[count])
    )
    assert ends == [3]
    assert report.ends == 1
    assert report.states < report.steps


def test_each_state_is_visited_once() -> None:
    """Two participants of n steps of their own each: a square of states."""
    memory = Memory()
    words = memory.words("own", 0, 2)

    def goes(own: int) -> Callable[[], Steps]:
        def steps() -> Steps:
            for number in range(1, 5):
                yield store(own, number)

        return steps

    report = explore(memory, named(goes(words[0]), goes(words[1])))
    assert (report.states, report.steps, report.ends) == (25, 40, 1)


def test_a_spin_is_a_livelock() -> None:
    memory = Memory()
    flag = memory.word("flag", 0)

    def waits() -> Steps:
        while True:
            seen = yield load(flag)
            if seen:
                return

    def sets() -> Steps:
        yield store(flag, 1)

    with pytest.raises(Counterexample, match="livelock"):
        explore(memory, named(waits, sets))


def test_two_that_undo_each_others_work_are_a_livelock() -> None:
    memory = Memory()
    turn = memory.word("turn", 0)

    def wants(me: int) -> Callable[[], Steps]:
        def steps() -> Steps:
            while True:
                yield store(turn, me)
                seen = yield load(turn)
                if seen == me:
                    return

        return steps

    with pytest.raises(Counterexample, match="livelock"):
        explore(memory, named(wants(1), wants(2)))


def test_a_standstill_is_found_and_a_lock_of_the_dead_is_free() -> None:
    memory = Memory()
    one, two = memory.words("lock", 0, 2)

    def locks(*order: int) -> Callable[[], Steps]:
        def steps() -> Steps:
            for word in order:
                yield lock(word)
            for word in order:
                yield store(word, 0)

        return steps

    assert explore(memory, named(locks(one, two), locks(one, two))).ends == 1
    with pytest.raises(Counterexample, match="standstill"):
        explore(memory, named(locks(one, two), locks(two, one)))
    alone = explore(memory, named(locks(one), locks(one)), killable=[0], kills=1)
    assert alone.ends > 1


def test_everybody_that_can_be_killed_is_killed_before_each_step() -> None:
    memory = Memory()
    words = memory.words("word", 0, 3)
    ends = set()

    def goes() -> Steps:
        for number in range(3):
            yield store(words[number], 1)

    explore(
        memory,
        named(goes),
        killable=[0],
        kills=1,
        at_end=lambda state: ends.add((state[DEAD], *(state[word] for word in words))),
    )
    assert ends == {(1, 0, 0, 0), (1, 1, 0, 0), (1, 1, 1, 0), (0, 1, 1, 1)}


def test_halves_of_a_pair_are_steps_of_their_own() -> None:
    memory = Memory()
    pair = memory.word("pair", (0, 0))
    seen = set()

    def writes() -> Steps:
        yield put(pair, 1, 1)
        yield put(pair, 0, 1)

    def reads() -> Steps:
        position = yield get(pair, 0)
        rest = yield get(pair, 1)
        yield add(DEAD, 0)
        yield ghost(lambda words, actor, *values: seen.add(values), position, rest)

    explore(memory, named(writes, reads))
    assert seen == {(0, 0), (0, 1), (1, 1)}


def test_an_invariant_is_checked_after_each_step_that_changes_memory() -> None:
    memory = Memory()
    word = memory.word("word", 0)

    def goes() -> Steps:
        yield store(word, 1)
        yield store(word, 0)

    def check(words: list[Any]) -> None:
        if words[word]:
            raise Violation("it is 1 for a moment")

    with pytest.raises(Counterexample, match="for a moment") as found:
        explore(memory, named(goes), check=check)
    assert found.value.schedule == [" participant 0  word := 1"]


def test_participants_at_one_line_with_other_variables_are_apart() -> None:
    memory = Memory()
    word = memory.word("word", 0)
    sums = set()

    def adds() -> Steps:
        first = yield load(word)
        second = yield load(word)
        yield add(DEAD, 0)
        sums.add(first + second)

    def sets() -> Steps:
        yield store(word, 1)
        yield store(word, 5)

    explore(memory, named(adds, sets))
    assert sums == {0, 1, 2, 5, 6, 10}
