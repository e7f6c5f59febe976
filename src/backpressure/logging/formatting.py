"""QuickFormat: the lines of logging.Formatter, for less."""

from __future__ import annotations

import logging
import time
from typing import Final

__all__ = ["QuickFormat", "is_plain"]

# Programs replace them, to write times or whole lines their own way.
_FORMAT: Final = logging.Formatter.format
_FORMAT_TIME: Final = logging.Formatter.formatTime


def is_plain(formatter: logging.Formatter) -> bool:
    """Whether QuickFormat writes the same as `formatter` does now.

    It must be a plain Formatter: that writes the same text for every time within a
    second, but for the milliseconds.
    """
    return (
        type(formatter) is logging.Formatter
        and logging.Formatter.formatTime is _FORMAT_TIME
        and logging.Formatter.format is _FORMAT
        and "formatTime" not in (own := vars(formatter))
        and "format" not in own
    )


class QuickFormat:
    """`logging.Formatter.format` that keeps the text of the present second, since
    writing the time is a large part of the work.
    """

    def __init__(self, formatter: logging.Formatter) -> None:
        self.formatter: Final = formatter
        self._uses_time = formatter.usesTime()
        # The second, the formatter's converter and pattern, and the text. Replaced as a
        # whole, so any thread may read it.
        self._kept: tuple[float | None, object, str, str] = (None, None, "", "")

    def format(self, record: logging.LogRecord) -> str:
        formatter = self.formatter
        if record.exc_info or record.exc_text or record.stack_info or not self._uses_time:
            return formatter.format(record)
        record.message = record.getMessage()
        converter, datefmt = formatter.converter, formatter.datefmt
        pattern = datefmt or formatter.default_time_format
        second = record.created // 1.0
        kept_second, kept_converter, kept_pattern, text = self._kept
        if second != kept_second or converter is not kept_converter or pattern != kept_pattern:
            text = time.strftime(pattern, converter(record.created))
            # These two use whole seconds only. Another converter may use the fraction.
            if converter is time.localtime or converter is time.gmtime:
                self._kept = (second, converter, pattern, text)
        if not datefmt and formatter.default_msec_format:
            text = formatter.default_msec_format % (text, record.msecs)
        record.asctime = text
        return formatter.formatMessage(record)
