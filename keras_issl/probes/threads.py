"""How many threads a piece of linear algebra gets."""

import contextlib
import functools

_MANY_FROM = 200_000_000  # multiplications of a product


@functools.cache
def _controller():
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()


def one():
    """A context with one BLAS thread, where threadpoolctl is installed (scikit-learn brings it).

    Thousands of small products gain little from threads, and lose tenfold when other processes hold the cores.
    """
    controller = _controller()
    return contextlib.nullcontext() if controller is None else controller.limit(limits=1, user_api="blas")


def enough_for(work):
    """A context with one BLAS thread for products of fewer multiplications than pay for more."""
    return one() if work < _MANY_FROM else contextlib.nullcontext()
