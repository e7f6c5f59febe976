"""What all tests share: real log lines, and the rule that CI skips nothing."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from tests.support.logs import real_log

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# CI tries the same examples each time, so that a change is blamed for nothing but
# itself; other runs explore.
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under CI everything that a test needs is installed, so a skipped test is a failed
    one.

    A test whose subject does not exist on the machine at all (Windows on Linux) says so
    with the marker `platform`.
    """
    report = yield
    if report.skipped and os.environ.get("CI") and not item.get_closest_marker("platform"):
        report.outcome = "failed"
        report.longrepr = f"skipped under CI: {report.longrepr}"
    return report


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Keep modules and items from the garbage collector: they stay to the end.

    No collection has to look at them, in a test or in a child that it forks. What a
    test makes is collected as ever.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what counts instructions: an instrumented build has others."""
    for item in items:
        if "steps_are_allowed" in getattr(item, "fixturenames", ()):
            item.add_marker("uninstrumented")


@pytest.fixture(
    params=[
        pytest.param(False, id="share"),
        pytest.param(True, id="proof", marks=pytest.mark.proof),
    ]
)
def in_full(request: pytest.FixtureRequest) -> bool:
    """Whether to prove it in full, or a share of it that takes a second or two.

    A test that asks for this is run both ways.
    """
    return bool(request.param)


@pytest.fixture(scope="session")
def log_lines() -> bytes:
    """10,000 access-log lines."""
    return real_log("apache_access.log")
