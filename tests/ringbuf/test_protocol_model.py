"""The rings' protocols in every interleaving of a few operations of two and three
participants.

They are transcripts of the compiled code (tests/support/ring_protocol.py,
runs_protocol.py), on rings of a few granules. With whole positions they hold; with
narrow ones, as they were before, a stalled participant breaks them, and so does leaving
out any one step. Each test expects a least number of states, so that a model which
explores nothing fails.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.support.interleave import Counterexample, Report, explore
from tests.support.ring_protocol import Protocol, Ring, script
from tests.support.runs_protocol import Runs, RunsProtocol, runs_script

pytestmark = pytest.mark.single_thread

Operation = tuple[Any, ...]


def push(granules: int = 1, count: int = 1) -> Operation:
    return "push", granules, count


def take(most: int = 1) -> Operation:
    return "take", most


def orphan(most: int = 1) -> Operation:
    return "orphan", most


def release(take: int = 0) -> Operation:
    return "release", take


def release_and_rewind(take: int = 0) -> Operation:
    return "release", take, 0


def go_on_as(other: int) -> Operation:
    return "as", other


def dies(other: int) -> Operation:
    return "dies", other


def is_born(other: int) -> Operation:
    return "is born", other


TIDY = ("tidy",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """
    protocol: what is not as by default.
    first: operations before the participants begin; scripts: those of each participant.
    kills: how many of the participants `killable` are killed.
    states: the least number that has to be found.
    """

    protocol: dict[str, Any] = dataclasses.field(default_factory=dict)
    first: tuple[Operation, ...] = ()
    scripts: tuple[tuple[Operation, ...], ...]
    kills: int = 0
    killable: tuple[int, ...] = ()
    states: int

    def run(self, **changes: Any) -> Report:
        protocol = {"participants": len(self.scripts), **self.protocol, **changes}
        ring = Ring(Protocol(**protocol))
        ring.begin_with(*self.first)
        return explore(
            ring.memory,
            [
                (f"participant {number}", script(ring, number, *operations))
                for number, operations in enumerate(self.scripts)
            ],
            check=ring.check,
            at_end=ring.at_end,
            killable=self.killable,
            kills=self.kills,
        )


TWO = {"capacity": 2}

#: Without deaths; in memory and shared.
LIVING = {
    "three pushes, of which two fit": Case(
        protocol=TWO, scripts=((push(),), (push(),), (push(),)), states=7_000
    ),
    "two pushes against one for all the room": Case(
        protocol=TWO, scripts=((push(), push()), (push(2),)), states=600
    ),
    "pushes against takes": Case(
        protocol=TWO,
        scripts=((push(), push(), push()), (take(), release(0), take(), release(1))),
        states=1_500,
    ),
    "parts of frames, released out of order": Case(
        protocol={"messages": 3},
        first=(push(1, 3), push()),
        scripts=((take(2), release()), (take(2), take(2), release(1), release(0))),
        states=4_000,
    ),
    "two takes against a push that needs their room": Case(
        protocol=TWO,
        first=(push(), push()),
        scripts=((take(), release()), (take(), release()), (push(),)),
        states=60_000,
    ),
    "a rewind against a push": Case(
        first=(push(),),
        scripts=((take(), release_and_rewind()), (push(2), take(), release())),
        states=6_500,
    ),
    "a rewind against a push and a take": Case(
        protocol=TWO,
        first=(push(),),
        scripts=((take(), release_and_rewind()), (push(),), (take(), release())),
        states=12_000,
    ),
    "two rewinds": Case(
        protocol=TWO,
        scripts=((push(), take(), release_and_rewind()),) * 2,
        states=20_000,
    ),
    "a rewind's pad against a push of all the room": Case(
        protocol=TWO,
        first=(push(),),
        scripts=((take(), release_and_rewind()), (push(2),), (take(), release())),
        states=100_000,
    ),
    "three parts of one frame": Case(
        protocol={"messages": 3},
        first=(push(1, 3),),
        scripts=((take(), release()),) * 3,
        states=500_000,
    ),
}
LONG = {"three parts of one frame", "a rewind's pad against a push of all the room"}

#: Acts for several participants that come and go one after the other; it says when they
#: die.
ORPHAN_TWICE = (
    *(go_on_as(2), take(2), dies(2), go_on_as(4), TIDY, go_on_as(5), orphan()),
    *(go_on_as(3), orphan(), go_on_as(4), dies(5), TIDY, is_born(2)),
    *(go_on_as(2), orphan(), dies(2), go_on_as(4), TIDY, go_on_as(3), release(2)),
)
SLOT_OF_ANOTHER = (
    *(go_on_as(2), take(2), dies(2), go_on_as(4), TIDY, go_on_as(3), orphan(2)),
    *(dies(4), go_on_as(1), TIDY, is_born(2), go_on_as(2), take(), release(2)),
    *(go_on_as(3), release(1)),
)

#: With deaths before any step, and a participant that tidies up while the others go on.
DEADLY = {
    "a push is killed": Case(
        scripts=((push(), push(2)), (TIDY, push())), kills=1, killable=(0,), states=4_000
    ),
    "a push is killed that claims all the room": Case(
        scripts=((push(4),), (TIDY,)), kills=1, killable=(0,), states=200
    ),
    "a take is killed": Case(
        protocol={"messages": 2},
        first=(push(1, 2), push(1, 2)),
        scripts=((take(4), release()), (TIDY, orphan(3), release(), orphan(), release(1))),
        kills=1,
        killable=(0,),
        states=1_100,
    ),
    "a take and a rewind are killed": Case(
        protocol=TWO,
        scripts=((push(), take(), release_and_rewind()), (TIDY, orphan(), release(), push())),
        kills=1,
        killable=(0,),
        states=8_000,
    ),
    "a push is killed beside another": Case(
        scripts=((push(),), (push(), push()), (TIDY,)), kills=1, killable=(0,), states=40_000
    ),
    "a take is killed beside another": Case(
        first=(push(), push()),
        scripts=((take(), release()), (take(), release()), (TIDY,)),
        kills=1,
        killable=(0,),
        states=40_000,
    ),
    "two take what one left": Case(
        first=(push(),),
        scripts=((take(), release()), (TIDY, orphan(), release()), (orphan(), release())),
        kills=1,
        killable=(0,),
        states=8_000,
    ),
    "a rewind is killed beside a push": Case(
        protocol=TWO,
        first=(push(),),
        scripts=((take(), release_and_rewind()), (push(),), (TIDY,)),
        kills=1,
        killable=(0,),
        states=20_000,
    ),
    "the one that tidies up is killed, or that took what was left": Case(
        protocol={"messages": 2},
        first=(push(1, 2),),
        scripts=((take(2), release()), (TIDY, orphan(2), release()), (TIDY, orphan(2), release())),
        kills=2,
        killable=(0, 1),
        states=25_000,
    ),
    "the one that fills a hole is killed": Case(
        scripts=((push(),), (TIDY,), (TIDY, push())), kills=2, killable=(0, 1), states=17_000
    ),
    "an orphan of an orphan, in the slot of the first": Case(
        protocol={"participants": 6, "messages": 2},
        first=(push(1, 2),),
        scripts=((orphan(2), release()), ORPHAN_TWICE),
        states=90_000,
    ),
    "an orphan whose slot another one has": Case(
        protocol={"participants": 6, "messages": 2},
        first=(push(1, 2), push(1, 2)),
        scripts=((orphan(2), release()), SLOT_OF_ANOTHER),
        states=15_000,
    ),
    "two preparations in one slot": Case(
        first=(push(), push()),
        scripts=((take(), release(), take(), release(1)), (take(), release())),
        kills=2,
        killable=(0, 1),
        states=9_000,
    ),
    "two pushes are killed": Case(
        scripts=((push(),), (push(),), (TIDY,)), kills=2, killable=(0, 1), states=30_000
    ),
}
#: Pairs that are loaded and stored half by half make the states some three times as
#: many.
LONG_IF_TORN = {
    "a push is killed beside another",
    "a take is killed beside another",
    "two pushes are killed",
    "the one that tidies up is killed, or that took what was left",
    "the one that fills a hole is killed",
    "an orphan of an orphan, in the slot of the first",
}

#: One participant stalls in mid-take or mid-push, while another sends the positions
#: round.
GOES_ROUND = (
    *(take(), release_and_rewind(0), push(), take(), release_and_rewind(1)),
    *(push(), take(), release_and_rewind(2), push(), take(), release_and_rewind(3), push()),
)
STALLED_TAKE = Case(
    protocol=TWO, first=(push(),), scripts=((take(), release()), GOES_ROUND), states=40_000
)
STALLED_PUSH = Case(protocol=TWO, first=(push(),), scripts=((push(),), GOES_ROUND), states=14_000)
#: As the protocol was with half of a position in a word.
NARROW = {"turn_bits": 2, "passes_pads": False, "fresh_end": False}


def cases(table: dict[str, Case], long: set[str] = LONG) -> list[Any]:
    return [
        pytest.param(case, id=name, marks=[pytest.mark.proof] if name in long else [])
        for name, case in table.items()
    ]


@pytest.mark.parametrize("case", cases(LIVING))
def test_in_memory(case: Case) -> None:
    assert case.run().states >= case.states


@pytest.mark.parametrize(
    "case", cases(LIVING, LONG | {"two takes against a push that needs their room"})
)
def test_shared(case: Case) -> None:
    if case is LIVING["three parts of one frame"]:
        case = dataclasses.replace(
            case, first=(push(1, 2),), scripts=case.scripts[:2], states=1_000
        )
    assert case.run(shared=True).states >= case.states


@pytest.mark.parametrize("case", cases(DEADLY))
def test_deaths(case: Case) -> None:
    assert case.run(shared=True).states >= case.states


@pytest.mark.parametrize("case", cases(DEADLY, LONG_IF_TORN))
def test_pairs_that_are_loaded_half_by_half(case: Case) -> None:
    assert case.run(shared=True, torn=True).states >= case.states


@pytest.mark.parametrize(
    "name",
    [
        "a push is killed",
        "a take is killed",
        "two take what one left",
        "an orphan whose slot another one has",
    ],
)
def test_narrow_positions_do_while_nothing_wraps(name: str) -> None:
    assert DEADLY[name].run(shared=True, narrow=(6, 6), turn_bits=3).states >= DEADLY[name].states


# ---------------------------------------------------------------- what comes again


@pytest.mark.parametrize("shared", [False, True], ids=["in memory", "shared"])
def test_a_stalled_take_is_fooled_by_a_narrow_read(shared: bool) -> None:
    """After one way round `read` has the same bits; the exchange takes from an older
    round.
    """
    with pytest.raises(Counterexample) as found:
        STALLED_TAKE.run(shared=shared, narrow=(3, 6), **NARROW)
    assert "takes message" in found.value.reason
    *before, last = found.value.schedule
    # One line a step: it looks, the other goes round, and then its exchange succeeds.
    assert "participant 0" in last
    assert "read := " in last
    assert sum("tail := " in line for line in before) >= 4
    assert sum("participant" in line for line in before) <= 4, "a schedule of few switches"


@pytest.mark.parametrize("shared", [False, True], ids=["in memory", "shared"])
def test_a_stalled_push_is_fooled_by_a_narrow_write(shared: bool) -> None:
    with pytest.raises(Counterexample, match="claims"):
        STALLED_PUSH.run(shared=shared, narrow=(3, 2), **NARROW)


@pytest.mark.parametrize(
    "shared",
    [
        pytest.param(False, id="in memory"),
        pytest.param(True, id="shared", marks=pytest.mark.proof),
    ],
)
@pytest.mark.parametrize("case", [STALLED_TAKE, STALLED_PUSH], ids=["take", "push"])
def test_a_stall_does_no_harm_to_whole_positions(case: Case, shared: bool) -> None:
    assert case.run(shared=shared).states >= case.states


@pytest.mark.parametrize("shared", [False, True], ids=["in memory", "shared"])
def test_narrow_positions_do_not_tell_empty_from_full_at_half_their_range(shared: bool) -> None:
    """As a ring of 2**31 granules with 32 bits."""
    with pytest.raises(Counterexample, match="claims at"):
        Case(scripts=((push(4), push()), (take(), release())), states=0).run(
            shared=shared, narrow=(3, 6), **NARROW
        )


def test_a_turn_of_few_bits_comes_again() -> None:
    case = DEADLY["an orphan of an orphan, in the slot of the first"]
    with pytest.raises(Counterexample, match="which another one has"):
        case.run(shared=True, narrow=(6, 6), turn_bits=1)


# ---------------------------------------------------------------- what each step is for


FILL = Case(
    protocol=TWO,
    first=(push(), take(), release_and_rewind()),
    scripts=((push(),), (take(), release())),
    states=40,
)
ADVANCE = Case(first=(push(), push()), scripts=((take(), release()),) * 2, states=1_000)
MARKS = Case(
    protocol=TWO,
    first=(push(), push()),
    scripts=((take(), release(), push(), take(), release(1)),) * 2,
    states=30_000,
)


@pytest.mark.parametrize(
    ("without", "reason", "case"),
    [
        ("fill before publish", "a second time", FILL),
        ("advance", "which is released", ADVANCE),
        ("clear marks", "not released", MARKS),
    ],
)
def test_in_memory_no_step_can_be_left_out(without: str, reason: str, case: Case) -> None:
    assert case.run().states >= case.states
    with pytest.raises(Counterexample, match=reason):
        case.run(without=frozenset([without]))


@pytest.mark.parametrize(
    ("without", "reason", "name"),
    [
        ("help_taker", "are lost", "a take is killed beside another"),
        ("second load of state", "are lost", "a take is killed beside another"),
        ("prepare first", "are lost", "a take is killed"),
        ("second load of the tag", "`write` is", "a push is killed beside another"),
        ("turn", "which another one has", "an orphan of an orphan, in the slot of the first"),
        ("load of the orphan's state", "a second time", "an orphan whose slot another one has"),
        ("version", "not read", "two preparations in one slot"),
    ],
)
def test_among_processes_no_step_can_be_left_out(without: str, reason: str, name: str) -> None:
    with pytest.raises(Counterexample, match=reason):
        DEADLY[name].run(shared=True, without=frozenset([without]))


def test_a_claim_looks_whether_write_has_moved() -> None:
    case = Case(protocol=TWO, scripts=((push(), push()), (push(),)), states=2_000)
    assert case.run(shared=True).states >= case.states
    with pytest.raises(Counterexample, match="claims at"):
        case.run(shared=True, without=frozenset(["load of write"]))


def test_a_push_without_room_passes_pads() -> None:
    """What a killed producer had claimed becomes a pad. Where it is all the room, no
    message can follow it, so no consumer passes it.
    """
    case = DEADLY["a push is killed that claims all the room"]
    with pytest.raises(Counterexample, match="no room"):
        case.run(shared=True, passes_pads=False)


def test_the_end_of_an_orphan_is_loaded_with_its_start() -> None:
    """Else a consumer that was too late for one ORPHAN takes from the next one in that
    slot, up to the end of the first.
    """
    case = DEADLY["an orphan of an orphan, in the slot of the first"]
    with pytest.raises(Counterexample, match="which another one has"):
        case.run(shared=True, fresh_end=False)


# ---------------------------------------------------------------- records


def run_records(
    *scripts: tuple[Operation, ...], first: tuple[Operation, ...] = (), **protocol: Any
) -> Report:
    ring = Runs(RunsProtocol(participants=len(scripts), **protocol))
    return explore(
        ring.memory,
        [
            (f"participant {number}", runs_script(ring, number, *operations))
            for number, operations in enumerate(scripts)
        ],
        check=ring.check,
        at_end=ring.at_end,
    )


def records(*operations: tuple[str, int]) -> tuple[Operation, ...]:
    return operations


RECORDS = {
    "two pushes and a take": (
        {"capacity": 2},
        (records(("push", 2)), records(("push", 2)), records(("take", 2), ("release", 0))),
        800,
    ),
    "takes in the midst of a run, released in any order": (
        {"capacity": 4},
        (
            records(("push", 2), ("take", 1), ("release", 0)),
            records(("take", 1), ("release", 0)),
            records(("take", 1), ("release", 0)),
        ),
        6_000,
    ),
    "two rewinds": (
        {"capacity": 2, "beyond": 0},
        (records(("push", 1), ("take", 1), ("release", 0)),) * 2,
        2_000,
    ),
}
STALLED_RECORDS = (
    records(("take", 1), ("release", 0)),
    tuple(op for at in range(3) for op in (("push", 1), ("take", 1), ("release", at))),
)


@pytest.mark.parametrize(("protocol", "scripts", "states"), RECORDS.values(), ids=RECORDS)
def test_records(protocol: dict[str, Any], scripts: Any, states: int) -> None:
    assert run_records(*scripts, **protocol).states >= states


def test_records_look_at_tail_again_after_a_mark() -> None:
    case: tuple[dict[str, Any], Any, int] = RECORDS[
        "takes in the midst of a run, released in any order"
    ]
    protocol, scripts, _ = case
    with pytest.raises(Counterexample, match="which is released"):
        run_records(*scripts, **protocol, without=frozenset(["second load of tail"]))


def test_a_stalled_take_of_records_is_fooled_by_a_narrow_read() -> None:
    with pytest.raises(Counterexample, match="takes from") as found:
        run_records(*STALLED_RECORDS, beyond=0, narrow=2)
    assert "read := " in found.value.schedule[-1]


def test_a_stall_does_no_harm_to_a_whole_read_of_records() -> None:
    assert run_records(*STALLED_RECORDS, beyond=0).states >= 15_000
