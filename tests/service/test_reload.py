"""Reload: one table says what can change while the service runs.

Everything that reloads goes by it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from backpressure import BufferManager
from backpressure.base.events import EventType, Tuned
from backpressure.cli import main
from backpressure.service import reload
from backpressure.service.config import FileTarget, ServeConfig
from backpressure.service.load import Mistakes, parse
from backpressure.service.reload import (
    TUNABLES,
    Tunable,
    config_in_force,
    differences,
    put_in_force,
    reload_plan,
    tunable_titles,
)
from backpressure.service.service import Service
from tests.support.paths import ROOT

#: For each tunable a value that is not its default.
VALUES: dict[str, Any] = {
    "buffer.flow_control.max_events_per_second": 1234,
    "buffer.flow_control.burst_size": 567,
    "buffer.batching.initial_batch_size": 2000,
    "service.log_level": "error",
    "service.drain_timeout": 3.5,
}


def tables(values: dict[str, Any]) -> dict[str, Any]:
    """The tables of a TOML file with these values."""
    given: dict[str, Any] = {"source": [{"type": "stdin"}], "sink": {"type": "stdout"}}
    for name, value in values.items():
        *places, key = name.split(".")
        table = given
        for place in places:
            table = table.setdefault(place, {})
        table[key] = value
    return given


def config(**values: Any) -> ServeConfig:
    return parse(tables(values), {})


def value_of(config: object, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A service that is not started."""
    given = {**tables({}), "sink": {"type": "file", "path": str(tmp_path / "out.log")}}
    service = Service(parse(given, {}))
    level = logging.getLogger("backpressure").level
    yield service
    logging.getLogger("backpressure").setLevel(level)
    service._close_all()


def changed(service: Service, values: dict[str, Any]) -> ServeConfig:
    sink = service.config.sink
    assert isinstance(sink, FileTarget)
    given = {**tables(values), "sink": {"type": "file", "path": sink.path}}
    return parse(given, {})


def test_each_has_a_value_here() -> None:
    """The tests below then cover a new tunable."""
    assert set(VALUES) == set(TUNABLES)


@pytest.mark.parametrize("name", TUNABLES)
def test_each_is_a_field_of_the_configuration(name: str) -> None:
    kind: Any = ServeConfig
    for part in name.split("."):
        assert part in {one.name for one in dataclasses.fields(kind)}, (
            f"{kind.__name__} has no {part}"
        )
        kind = get_type_hints(kind)[part]


@pytest.mark.parametrize("name", TUNABLES)
def test_each_is_told_from_what_needs_a_restart(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = config(), config(**{name: VALUES[name], "buffer.lane_bytes": "1M"})
    assert differences(old, new)[name] == (value_of(old, name), VALUES[name])
    assert reload_plan(old, new) == ({name: VALUES[name]}, ["buffer.lane_bytes"])
    monkeypatch.delitem(TUNABLES, name)
    assert reload_plan(old, new)[0] == {}, "without the table's entry it needs a restart"


@pytest.mark.parametrize("name", TUNABLES)
def test_each_is_in_force_afterwards_and_nothing_else(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = config()
    new = config(**{**VALUES, "buffer.lane_bytes": "1M", "service.state_file": "state"})
    after = config_in_force(old, new)
    assert value_of(after, name) == VALUES[name]
    assert reload_plan(after, new) == ({}, ["buffer.lane_bytes", "service.state_file"])
    monkeypatch.delitem(TUNABLES, name)
    assert value_of(config_in_force(old, new), name) == value_of(old, name)


def test_each_is_applied_once(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[tuple[BufferManager, str, Any]] = []

    def apply(name: str, buffer: BufferManager, value: Any) -> None:
        applied.append((buffer, name, value))

    for name in TUNABLES:
        monkeypatch.setitem(TUNABLES, name, Tunable(name, partial(apply, name)))
    done, later = put_in_force(service, changed(service, VALUES))
    assert (set(done), later) == (set(VALUES), [])
    assert sorted(applied, key=lambda one: one[1]) == [
        (service.buffer, name, value) for name, value in sorted(VALUES.items())
    ]
    assert put_in_force(service, changed(service, VALUES)) == ([], [])


def test_what_applying_does_and_which_of_it_is_audited(service: Service) -> None:
    seen: list[Tuned] = []
    service.buffer.on(EventType.TUNED, seen.append)
    put_in_force(service, changed(service, VALUES))
    stats = service.buffer.stats()
    assert (stats.flow_control.rate_limit, stats.flow_control.burst) == (1234, 567)
    assert stats.batching.batch_size == 2000
    assert logging.getLogger("backpressure").level == logging.ERROR
    assert service.config.service.drain_timeout == 3.5, "which stop() reads"
    assert {(one.setting, one.by) for one in seen} == {
        ("flow_control_rate", "reload"),
        ("batch_size", "reload"),
        ("burst_size", "reload"),
    }


def test_fields_that_a_check_weighs_against_each_other_are_taken_over_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each by itself would be beyond the other's old value."""
    names = ("buffer.batching.min_batch_size", "buffer.batching.initial_batch_size")
    monkeypatch.setattr(reload, "TUNABLES", {name: Tunable(name, print) for name in names})
    old = config(**dict.fromkeys(names, 2000))
    new = config(**dict.fromkeys(names, 5000))
    assert config_in_force(old, new) == new
    assert config_in_force(new, old) == old


def test_what_the_buffer_refuses_is_told_by_its_name(service: Service) -> None:
    def refuse(buffer: object, value: object) -> None:
        raise ValueError("not today")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TUNABLES, "service.drain_timeout", Tunable("drain timeout", refuse))
        with pytest.raises(Mistakes, match=r"^service.drain_timeout: not today$"):
            put_in_force(service, changed(service, {"service.drain_timeout": 1.0}))


def test_a_reload_that_is_refused_half_way_is_remembered_as_far_as_it_came(
    service: Service,
) -> None:
    """The next reload compares with what runs.

    What was put in force is not tried again, what was not is.
    """

    def refuse(buffer: object, value: object) -> None:
        raise ValueError("not today")

    rate = "buffer.flow_control.max_events_per_second"
    new = changed(service, {rate: 4711.0, "service.drain_timeout": 1.0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TUNABLES, "service.drain_timeout", Tunable("drain timeout", refuse))
        with pytest.raises(Mistakes, match="not today"):
            put_in_force(service, new)
    assert service.buffer.stats().flow_control.rate_limit == 4711.0
    assert set(reload_plan(service.config, new)[0]) == {"service.drain_timeout"}
    assert put_in_force(service, new) == (["service.drain_timeout"], [])


def test_help_and_docs_name_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert tunable_titles() == "rate, burst, batch size, log level and drain timeout"
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    assert f"{tunable_titles()} change at once" in capsys.readouterr().out
    page = " ".join((ROOT / "docs" / "operations.md").read_text().split())
    assert f"**SIGHUP**: {tunable_titles()} change at once" in page
