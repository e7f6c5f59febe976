"""Lock-free rings, a token bucket, rate windows and histograms: the compiled core of penstock."""

from ringbuf._bucket import Reservation, TokenBucket
from ringbuf._columns import Messages
from ringbuf._messages import MessageRing
from ringbuf._ring import RingBuffer

__all__ = ["MessageRing", "Messages", "Reservation", "RingBuffer", "TokenBucket"]
