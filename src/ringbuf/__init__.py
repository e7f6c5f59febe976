"""Lock-free rings, a token bucket, rate windows and histograms: the compiled core of forebay.

It knows numpy and nothing of policies. Everything public is importable from here.
"""

from ringbuf._bucket import Reservation, TokenBucket
from ringbuf._columns import Messages
from ringbuf._messages import MessageConsumer, MessageProducer, MessageRing
from ringbuf._ring import RingBuffer
from ringbuf._ring_look import RingLook
from ringbuf._salvage import Salvage, salvage
from ringbuf._shared_file import SharedFileError
from ringbuf._window import LatencyHistogram, RateWindow

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
