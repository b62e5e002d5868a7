"""Independent jobs in several processes that end with the process that started them."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from types import ModuleType
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_in_workers(
    work: Callable[[Job], Result], jobs: Sequence[Job], workers: int, prepare: Callable[[], None] | None = None
) -> Iterator[tuple[Job, Result]]:
    """(job, result) as jobs finish, in any order; in this process where ``workers`` is 1.

    work: a function of an importable module: workers do not import the caller's script, so that a script without an
    ``if __name__ == "__main__"`` guard, or a notebook, may call this.
    prepare: called once in each new process. Raises what ``work`` raises, and BrokenProcessPool for a killed worker.
    Ctrl-C, a job's error and SIGKILL end jobs in their middle: ``work`` must leave nothing that looks finished.
    """
    if workers <= 1:
        for job in jobs:
            yield job, work(job)
        return
    # spawn: a forked child of a process that has used torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(prepare,))
    others, started = set(multiprocessing.active_children()), set()
    try:
        with _interrupts_held(), _main_hidden():
            futures = {pool.submit(work, job): job for job in jobs}
            started = set(multiprocessing.active_children()) - others
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BaseException:
        for process in started:  # a scan takes many seconds, and nobody waits for its result any more
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back until the end: processes started here never get it, and end without a traceback."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _main_hidden() -> Iterator[None]:
    """An empty ``__main__``: a spawned process imports its parent's, and an unguarded script would run again in it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start(prepare: Callable[[], None] | None) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)  # the processes already fill the cores
    if prepare is not None:
        prepare()


def _end_with_parent() -> None:
    """A parent that was killed cannot stop its workers: they would write on beside the next run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
