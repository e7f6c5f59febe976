"""Lock-free rings, a token bucket, rate windows and histograms: the compiled core of
forebay.

It knows numpy and nothing of policies. Everything public is importable from here.
"""

from ringbuf._messages.columns import Messages
from ringbuf._messages.look import RingLook
from ringbuf._messages.ring import MessageConsumer, MessageProducer, MessageRing
from ringbuf._messages.salvage import Salvage, salvage
from ringbuf._meters.latency_histogram import LatencyHistogram
from ringbuf._meters.rate_window import RateWindow
from ringbuf._meters.reservation import Reservation
from ringbuf._meters.token_bucket import TokenBucket
from ringbuf._records.ring import RingBuffer
from ringbuf._shared.shared_file import SharedFileError

__all__ = [
    "LatencyHistogram",
    "MessageConsumer",
    "MessageProducer",
    "MessageRing",
    "Messages",
    "RateWindow",
    "Reservation",
    "RingBuffer",
    "RingLook",
    "Salvage",
    "SharedFileError",
    "TokenBucket",
    "salvage",
]
