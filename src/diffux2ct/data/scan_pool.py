"""Run jobs on scans, in this process or in several; what ends them all becomes one line."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from diffux2ct.data.scan_job import DISK_FULL, ScanJob, ScanResult
from diffux2ct.data.workers import num_cores, run_in_workers
from diffux2ct.errors import UserError

Work = Callable[[ScanJob], ScanResult]


def run_jobs(
    work: Work, jobs: Sequence[ScanJob], workers: int | None, progress: bool = True
) -> Iterator[tuple[ScanJob, ScanResult]]:
    """(job, result) as scans finish, in any order. workers: processes; None = all cores.

    Raises UserError for a full disk and for a killed worker.
    """
    workers = max(1, min(num_cores() if workers is None else workers, len(jobs)))
    with tqdm(total=len(jobs), desc="preparing", unit="scan", disable=not progress or not jobs) as bar:
        try:
            for pair in run_in_workers(work, jobs, workers, _use_one_thread):
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


def _use_one_thread() -> None:
    from diffux2ct.data.volume_io import use_threads

    use_threads(1)
