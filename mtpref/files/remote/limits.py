"""What a server may cost: time, bytes and tries; and what it did cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """timeout       seconds without a byte; also for all headers of a response together
    slowest         bytes a second; slower than that for `timeout` seconds is as good as nothing
    header_bytes    of a response before its body; 1xx answers count too
    redirects       one after the other
    tries           in a row that bring less than `progress` bytes
    pause, longest  seconds before the second try, twice as long before each more; at most
    """

    timeout: float = 30.0
    slowest: int = 1024
    header_bytes: int = 1 << 16
    redirects: int = 5
    tries: int = 7
    progress: int = 1 << 20
    pause: float = 0.5
    longest: float = 20.0


@dataclass
class Meter:
    """What was asked for and came. n_bytes: of bodies"""

    n_requests: int = 0
    n_bytes: int = 0
    n_retries: int = 0
