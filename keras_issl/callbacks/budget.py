"""A share of the time of a run, for work beside it."""

import contextlib
import time

from keras_issl import distribution


class Budget:
    """Says when it is time again for work that should take at most a share of the time. It is so at first.

    Args:
        share: The share, such as 0.005.

    Example:

    >>> from keras_issl.callbacks.budget import Budget
    >>> budget = Budget(0.01)
    >>> with budget.spend():
    ...     total = sum(range(100_000))
    >>> budget.due
    False
    """

    def __init__(self, share):
        self.share, self.next_at = share, 0.0
        # Clocks differ, and processes of one run have to do the same: they go by how often they were asked.
        self.counting, self.asked = distribution.share_of_process()[1] > 1, 0

    @property
    def due(self):
        """Whether the last work has paid for itself."""
        if self.counting:
            self.asked += 1
            return self.asked & (self.asked - 1) == 0  # the 1st, 2nd, 4th, 8th, ... time
        return time.monotonic() >= self.next_at

    @contextlib.contextmanager
    def spend(self):
        """Times the work within, and asks for the time between in proportion."""
        began = time.monotonic()
        yield
        now = time.monotonic()
        self.next_at = now + (now - began) / self.share
