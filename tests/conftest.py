"""What all tests share: real log lines, and the rule that CI skips nothing."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import HealthCheck, settings

from tests.support.paths import DATA

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# CI tries the same examples each time, so that a change is blamed for nothing but itself; everybody else explores.
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Under CI everything that a test needs is installed, so a skipped test is a failed one.

    A test whose subject does not exist on the machine at all (Windows on Linux) says so with the marker `platform`.
    """
    report = yield
    if report.skipped and os.environ.get("CI") and not item.get_closest_marker("platform"):
        report.outcome = "failed"
        report.longrepr = f"skipped under CI: {report.longrepr}"
    return report


@pytest.fixture(
    params=[
        pytest.param(False, id="share"),
        pytest.param(True, id="proof", marks=pytest.mark.proof),
    ]
)
def in_full(request: pytest.FixtureRequest) -> bool:
    """Whether to prove it in full, or a share of it that takes a second or two: a test that asks for this is run both ways."""
    return bool(request.param)


@pytest.fixture(scope="session")
def log_lines() -> bytes:
    """10,000 access-log lines: the real ones where they are at hand, else of the same shape and lengths."""
    real = DATA / "apache_access.log"
    if real.exists():
        return real.read_bytes()
    rng = random.Random(10_000)
    agents = ["Mozilla/5.0 (X11; Linux x86_64) " + "x" * rng.randrange(20, 160) for _ in range(50)]
    return b"".join(
        b'%d.%d.%d.%d - - [17/May/2015:%02d:%02d:%02d +0000] "GET /%s HTTP/1.1" 200 %d "-" "%s"\n'
        % (
            *(rng.randrange(256) for _ in range(4)),
            rng.randrange(24),
            rng.randrange(60),
            rng.randrange(60),
            b"p" * rng.randrange(5, 60),
            rng.randrange(200_000),
            rng.choice(agents).encode(),
        )
        for _ in range(10_000)
    )
