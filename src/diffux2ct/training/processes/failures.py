"""Known failures of other processes, data workers and memory, each explained in one line."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from diffux2ct.errors import UserError

_SAFE = "the last checkpoint is intact, and the same command goes on from it"
_SECONDS_TO_TELL = 2.0
_PEER = re.compile(
    r"Connection (closed|reset)|closed by peer|Broken pipe|Connection refused|Socket Timeout|timed out|"
    r"remote process exited|NCCL (error|communicator was aborted)|ncclRemoteError|Gloo|gloo",
    re.IGNORECASE,
)


@contextmanager
def known_failures_in_one_line() -> Iterator[None]:
    """Turn what PyTorch raises for known failures into a UserError; others pass."""
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        message = explain(str(error), distributed=int(os.environ.get("WORLD_SIZE", "1")) > 1)
        if message is None:
            raise
        raise UserError(message) from error


def explain(text: str, distributed: bool) -> str | None:
    """One line for a known failure with this text, None for any other."""
    worker = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(.*)", text)
    if worker:
        how = re.search(r"signal: ([\w ]+)", worker[2])
        return _worker_died(f"data worker {worker[1]} died{f' ({how[1].strip()})' if how else ''}")
    if "does not have a deterministic implementation" in text:
        operation = text.split()[0]
        return f"trainer.deterministic=true: {operation} has no deterministic form on this device; set it to false"
    if re.search(r"out of memory|can't allocate memory|not enough memory", text, re.IGNORECASE):
        return (
            f"out of memory ({text.splitlines()[0][:120]}); {_SAFE}: raise trainer.accumulate, set "
            "trainer.checkpoint_stages, or lower trainer.batch_size"
        )
    if distributed and _PEER.search(text):
        rank = os.environ.get("RANK", "0")
        return f"rank {rank}: another process of this run ended, and reports its own error; {_SAFE}"
    return None


def _worker_died(what: str) -> str:
    return f"{what}, perhaps out of memory; {_SAFE}: lower trainer.num_workers if it happens again"


def of_worker(error: Exception, num_workers: int) -> Exception:
    """The user's view of an error that a DataLoader with so many workers raised; other errors unchanged.

    A worker's own UserError loses the traceback that DataLoader puts into its message. A worker that is killed while it
    hands a batch over shows first as a connection that ends.
    """
    text = str(error)
    caught = text.startswith("Caught ")  # raised in a worker that goes on
    if isinstance(error, UserError) and caught:
        return UserError(text.rpartition("UserError: ")[2].strip())
    if isinstance(error, ConnectionError | EOFError) and num_workers and not caught:
        try:
            time.sleep(_SECONDS_TO_TELL)
        except RuntimeError as death:  # from PyTorch's handler of SIGCHLD: which worker, and how it died
            return death
        return UserError(_worker_died("a data worker died"))
    return error
