"""Run jobs on scans, in this process or in several; what ends them all becomes one line."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import torch
from tqdm import tqdm

from diffux2ct.data.scan_job import DISK_FULL, ScanJob, ScanResult
from diffux2ct.errors import UserError

Work = Callable[[ScanJob], ScanResult]


def run_jobs(
    work: Work, jobs: Sequence[ScanJob], workers: int | None, progress: bool = True
) -> Iterator[tuple[ScanJob, ScanResult]]:
    """(job, result) as scans finish, in any order. workers: processes; None = all cores.

    Raises UserError for a full disk and for a killed worker.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(1, min(cores if workers is None else workers, len(jobs)))
    with tqdm(total=len(jobs), desc="preparing", unit="scan", disable=not progress or not jobs) as bar:
        try:
            for pair in _results(work, jobs, workers):
                bar.update()
                yield pair
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise UserError(
                f"{jobs[0].root}: the disk is full; free space and run the same command again, finished cases are kept"
            ) from error
        except BrokenProcessPool as error:
            raise UserError(
                f"{jobs[0].root}: a worker was killed (out of memory?); "
                f"run again with fewer, workers={workers // 2 or 1}"
            ) from error


def _results(work: Work, jobs: Sequence[ScanJob], workers: int) -> Iterator[tuple[ScanJob, ScanResult]]:
    if workers == 1:
        for job in jobs:
            yield job, work(job)
        return
    # spawn: a forked child of a process that has used torch's threads can hang.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        futures = {pool.submit(work, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """One thread each: the processes already fill the cores."""
    from diffux2ct.data.volume_io import use_threads

    torch.set_num_threads(1)
    use_threads(1)
