"""Threads for compiled kernels and NumPy, which release the GIL; the BLAS keeps to one meanwhile.

To be used from one thread at a time, and not in a process forked after its first use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from threadpoolctl import ThreadpoolController


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all that is loaded: once is enough


def one_blas_thread():
    """Return a context in which NumPy's BLAS has one thread.

    Those that it wakes for a large product go on spinning for a while after it.
    """
    return _libraries().limit(limits=1, user_api="blas")


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def over(task: Callable, chunks: Iterable) -> list:
    """Return ``task(chunk)`` of every chunk, in order, from ``torch.get_num_threads()`` threads.

    Each result depends on its chunk alone, so the number of threads changes nothing but the time.
    """
    with one_blas_thread():
        return list(_pool(torch.get_num_threads()).map(task, chunks))
