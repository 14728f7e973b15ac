"""Encoders that go wrong, for a process of their own: it finds them by this module's name. Knows no test."""

import os
import signal
import time
from typing import Any

from bloomery.data.unfinished import Encoded


class Killed:
    """Its process is killed as it works."""

    def __call__(self, shard: Any) -> Encoded:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class Faulty:
    """It has a fault that no user can mend."""

    def __call__(self, shard: Any) -> Encoded:
        raise ZeroDivisionError("by design")


class Uneven:
    """Each shard, a number, is its own tokens; early ones take longest."""

    def __call__(self, shard: Any) -> Encoded:
        time.sleep(0.3 if shard == 0 else 0)
        return Encoded(bytes([shard]), b"", 0)
