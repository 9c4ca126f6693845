"""Waits for something that another thread or process brings about."""

import threading
import time


def wait_until(condition, what, seconds=10):
    """Poll a condition; the test fails with `what` where it does not come true in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain until {what}"
        threading.Event().wait(0.01)
