"""Batches made ahead of the step that takes them, in a thread."""

import threading
from concurrent.futures import ThreadPoolExecutor


class Ahead:
    """Calls a function for the keys that will be asked for next, so that they are there when they are.

    Args:
        make: Function of a key. It is called in one other thread, one key after the other.
        following: Function from a key to the one that is asked for after it, or `None` after the last.
        count: How many keys ahead.

    Example:

    ```python
    ahead = Ahead(lambda i: i**2, lambda i: i + 1, 2)
    ahead(3)  # 9, and 4 and 5 are on their way
    ```
    """

    def __init__(self, make, following, count):
        self._make, self._following, self._count = make, following, count
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="keras_issl-batches")
        self._pending, self._lock = {}, threading.Lock()

    def __call__(self, key):
        """What `make(key)` returns, or raises."""
        with self._lock:
            wanted = [key]
            while len(wanted) <= self._count and (key := self._following(wanted[-1])) is not None:
                wanted.append(key)
            for other in [other for other in self._pending if other not in wanted]:
                self._pending.pop(other).cancel()  # of an epoch that was left, say
            for other in wanted:
                if other not in self._pending:
                    self._pending[other] = self._pool.submit(self._make, other)
            future = self._pending.pop(wanted[0])
        return future.result()
