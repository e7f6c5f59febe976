"""What an exception out of a sink means: the table, line by line."""

from __future__ import annotations

import asyncio
import concurrent.futures
import email.utils
import io
import time
import urllib.error
from email.message import Message
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import pytest

from backpressure import (
    BatchRejected,
    BatchTooLarge,
    BufferFull,
    CircuitBreakerConfig,
    CircuitOpenError,
    PartialFailure,
    RateLimited,
    SinkGone,
    SinkUnavailable,
)
from backpressure.delivery.outcomes import Meaning, outcome_of, retry_after_of

IGNORES = CircuitBreakerConfig(ignored_exceptions=(LookupError,)).ignores


class Answered(Exception):
    """A client's error with a status, by some attribute."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Hostile(Exception):
    """Whose attributes cannot be read."""

    @property
    def response(self) -> object:
        raise RuntimeError("there is none")

    @property
    def status(self) -> object:
        raise KeyboardInterrupt if False else ValueError("no")


def group(*errors: Exception) -> ExceptionGroup[Exception]:
    return ExceptionGroup("several", list(errors))


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (None, Meaning.FAULT),
        ("it failed", Meaning.FAULT),
        (asyncio.CancelledError(), Meaning.IGNORED),
        (concurrent.futures.CancelledError(), Meaning.IGNORED),
        (KeyboardInterrupt(), Meaning.IGNORED),
        (KeyError("ignored by the config"), Meaning.IGNORED),
        (CircuitOpenError("of the sink's own breaker"), Meaning.IGNORED),
        (SinkGone("closed"), Meaning.GONE),
        (SinkUnavailable(), Meaning.UNAVAILABLE),
        (RateLimited("wait"), Meaning.UNAVAILABLE),
        (BufferFull("wait"), Meaning.UNAVAILABLE),
        (BatchTooLarge(), Meaning.TOO_LARGE),
        (BatchRejected(), Meaning.REJECTED),
        (PartialFailure(retry=[0]), Meaning.PARTIAL),
        (ConnectionError(), Meaning.UNAVAILABLE),
        (TimeoutError(), Meaning.UNAVAILABLE),
        (OSError(28, "no space"), Meaning.UNAVAILABLE),
        (ValueError("a bug, or a bad event"), Meaning.FAULT),
        (Hostile(), Meaning.FAULT),
        (group(BatchRejected(), OSError()), Meaning.UNAVAILABLE),
        (group(KeyError("ignored"), BatchRejected()), Meaning.REJECTED),
        (group(group(SinkGone()), ValueError()), Meaning.GONE),
        (group(PartialFailure(retry=[0]), KeyError("ignored")), Meaning.FAULT),
        (group(PartialFailure(retry=[0])), Meaning.PARTIAL),
        (Answered(status=True), Meaning.FAULT),
        (Answered(status="404"), Meaning.FAULT),
        (Answered(code=lambda: 404), Meaning.FAULT),
        (Answered(code=200), Meaning.FAULT),
        (Answered(code=600), Meaning.FAULT),
        (Answered(status=None, status_code=400), Meaning.REJECTED),
        (Answered(status=HTTPStatus.SERVICE_UNAVAILABLE), Meaning.UNAVAILABLE),
        (Answered(response=SimpleNamespace(status_code=413)), Meaning.TOO_LARGE),
    ],
)
def test_each_line(error: BaseException | str | None, meaning: Meaning) -> None:
    outcome = outcome_of(error, IGNORES)
    assert outcome.meaning is meaning
    if meaning is not Meaning.PARTIAL:
        assert outcome.error is error


REJECTED = {400, 406, 409, 410, 411, 412, 414, 415, 416, 417, 422, 431}


@pytest.mark.parametrize("attribute", ["status", "status_code", "code"])
def test_every_status(attribute: str) -> None:
    for status in range(400, 600):
        wanted = (
            Meaning.TOO_LARGE
            if status == 413
            else Meaning.REJECTED
            if status in REJECTED
            else Meaning.UNAVAILABLE
        )
        assert outcome_of(Answered(**{attribute: status}), IGNORES).meaning is wanted, status


def urllib_error(status: int, **headers: str) -> urllib.error.HTTPError:
    message = Message()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    return urllib.error.HTTPError("http://x", status, "no", message, io.BytesIO())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30.0),
        ("0", 0.0),
        (" 7 ", 7.0),
        ("99999999999999999999", 3600.0),
        ("-5", None),
        ("1.5", None),
        ("²", None),
        ("soon", None),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
    ],
)
def test_retry_after(text: str, seconds: float | None) -> None:
    error = urllib_error(503, Retry_After=text)
    assert retry_after_of(error) == seconds
    outcome = outcome_of(error, IGNORES)
    assert (outcome.meaning, outcome.retry_after) == (Meaning.UNAVAILABLE, seconds)


def test_retry_after_as_a_date_and_of_a_response() -> None:
    date = email.utils.formatdate(time.time() + 60, usegmt=True)
    response = SimpleNamespace(status_code=429, headers={"retry-after": date})
    found = outcome_of(Answered(response=response), IGNORES)
    assert found.retry_after is not None
    assert 55 < found.retry_after <= 60
    odd = SimpleNamespace(status_code=429, headers=["no", "mapping"])
    assert outcome_of(Answered(response=odd), IGNORES).retry_after is None


def test_what_a_sink_says_of_its_time() -> None:
    assert outcome_of(SinkUnavailable(5), IGNORES).retry_after == 5.0
    assert outcome_of(SinkUnavailable("maintenance", retry_after=2.5), IGNORES).retry_after == 2.5
    assert outcome_of(SinkUnavailable(retry_after=1), IGNORES).retry_after == 1
    assert outcome_of(SinkUnavailable("away"), IGNORES).retry_after is None
    assert str(SinkUnavailable(5)) == "the sink is not available"
    assert str(SinkUnavailable("maintenance")) == "maintenance"
    assert outcome_of(RateLimited("x", 3.0), IGNORES).retry_after == 3.0
    assert outcome_of(RateLimited("x"), IGNORES).retry_after is None
    for bad in (-1, float("nan")):
        with pytest.raises(ValueError, match="retry_after"):
            SinkUnavailable(bad)


def test_outcomes_cross_processes() -> None:
    import pickle

    error = PartialFailure("half of it", retry=[1], reject={2: ValueError("bad")})
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.retry, list(again.reject)) == ("half of it", (1,), [2])
    away = pickle.loads(pickle.dumps(SinkUnavailable("maintenance", retry_after=2.5)))
    assert (str(away), away.retry_after) == ("maintenance", 2.5)
