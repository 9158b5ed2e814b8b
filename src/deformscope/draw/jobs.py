"""Work on several photos at once, each in a process of its own."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from ..errors import DeformscopeError

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_processes(work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> Iterator[Result]:
    """The results of ``work`` for all tasks, in their order, from ``jobs`` processes, which share this one's threads.

    ``work`` is sent to each process once. Warnings are given here. Raises DeformscopeError if ``work`` cannot be sent,
    and if a process ends early.
    """
    import torch

    try:
        sent = pickle.dumps(work)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise DeformscopeError(
            f"jobs={jobs}: what it takes cannot be sent to other processes ({error}); expected jobs=1"
        ) from None
    threads = max(1, torch.get_num_threads() // jobs)
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (sent, threads))
    try:
        waiting: list[Future[Any]] = [pool.submit(_one, task) for task in tasks]
        waiting.reverse()
        while waiting:
            result, said = waiting.pop().result()
            for message, category in said:
                warnings.warn(message, category, stacklevel=3)
            yield result
    except BrokenProcessPool:
        raise DeformscopeError(
            f"jobs={jobs}: a process ended early, possibly for lack of memory; expected each to last, give fewer"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_work: Callable[[Any], Any] | None = None


def _begin(sent: bytes, threads: int) -> None:
    import signal

    import torch

    global _work  # noqa: PLW0603  (a process of the pool has no other place)
    _work = pickle.loads(sent)
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that gave the work


def _one(task: Any) -> tuple[Any, list[tuple[str, type[Warning]]]]:
    assert _work is not None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = _work(task)
    return result, [(str(one.message), one.category) for one in said]
