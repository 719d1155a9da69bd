"""How many threads the libraries beneath NumPy and PyTorch may use while a query is decided, and threads of our own."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mucg4.limits.processes import single_thread, usable_cores

if TYPE_CHECKING:
    from concurrent.futures import Future

K = TypeVar("K")
T = TypeVar("T")

WIDE = 2048  # nodes larger than this give BLAS threads enough to do; not measured
FEW = 2  # with so many workers threads give nothing; measured for two, see `blas_threads`


@contextmanager
def blas_threads(workers: int, largest: int) -> Iterator[None]:
    """One BLAS thread with one or two workers (0: one per core), and where the `largest` node is small.

    There threads cost more than they give. Measured: on two busy cores two threads made ACAS Xu rows up to three times
    slower, on idle ones none was more than a fifth faster. Rows of oval21, metaroom and sri_resnet_a take as long with
    one as with two on idle cores and up to 2.5 times as long with two beside one busy process; two oval21 rows at the
    same time, one worker each, were five times slower with two.
    """
    if (workers or usable_cores()) > FEW and largest > WIDE:
        yield
        return
    with single_thread():
        yield


def side_by_side(tasks: Iterable[tuple[K, Callable[[], T]]], threads: int) -> Iterator[tuple[K, T]]:
    """The name of each task and what it returns, in their order; `threads` run at a time, and a few are done ahead.

    For tasks that spend their time in NumPy, which lets other threads go on meanwhile. They ignore floating-point
    errors. What a task raises is raised here, as is what naming the tasks raises, once those that run have ended.
    """
    tasks = iter(tasks)
    first = list(islice(tasks, 2))
    if threads < 2 or len(first) < 2:
        for name, task in chain(first, tasks):
            yield name, task()
        return
    from concurrent.futures import ThreadPoolExecutor

    quiet = partial(np.seterr, all="ignore")  # threads do not inherit what the caller wants of overflow
    with single_thread(), ThreadPoolExecutor(threads, initializer=quiet) as pool:
        running: deque[tuple[K, Future[T]]] = deque()
        try:
            for name, task in chain(first, tasks):
                running.append((name, pool.submit(task)))
                if len(running) > 2 * threads:
                    name, future = running.popleft()
                    yield name, future.result()
            while running:
                name, future = running.popleft()
                yield name, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def torch_threads(device: str) -> Iterator[None]:
    """One PyTorch thread while computing on its CPU `device`, unless `OMP_NUM_THREADS` says otherwise.

    Measured: PyTorch's threads wait for each other by spinning, so on two busy cores two of them made rows more than
    twenty times slower.
    """
    if device != "cpu" or "OMP_NUM_THREADS" in os.environ:
        yield
        return
    torch = import_module("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
