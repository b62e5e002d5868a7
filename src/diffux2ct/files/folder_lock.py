"""One folder, one writer: a lock file beside the folder, ``.lock-<name>``, which names its process."""

import fcntl
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from diffux2ct.errors import UserError

LOCKS = ".lock*"
_BEAT, _SILENT = 20.0, 300.0  # seconds: between two signs of life, and after which another machine's lock is stale


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Locks an output folder for the length of a block. UserError, in one line, where another process holds the lock.

    A lock is stale, and replaced, if its process has ended, or if it is of another machine and has shown no sign of
    life for five minutes: processes on several machines may share the disk. All names of a folder have one lock.
    """
    folder = Path(os.path.realpath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = os.access(folder.parent, os.W_OK)  # else the folder is where a disk is mounted
    lock = folder.with_name(f".lock-{folder.name}") if beside else folder / ".lock"
    own = lock.with_name(f".lock.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}")
    mark = json.dumps(_this_process())
    try:
        own.write_text(mark, encoding="utf-8")
        while not _appears(lock, own):
            _remove_stale(lock, own, folder)
    finally:
        own.unlink(missing_ok=True)
    ended = threading.Event()
    threading.Thread(target=_show_life, args=(lock, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        with suppress(OSError):
            if lock.read_text(encoding="utf-8") == mark:  # else taken over, after this process was halted
                lock.unlink()


def _appears(lock: Path, own: Path) -> bool:
    """True if the lock was taken. It appears with its contents, on any file system, and for one process alone."""
    try:
        os.link(own, lock)
    except FileExistsError:
        return False
    except OSError:  # no hard links on this file system
        try:
            with lock.open("x", encoding="utf-8") as file:
                file.write(own.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
    return True


def _this_process() -> dict[str, Any]:
    """Number, start and machine of this process, and the time."""
    pid = os.getpid()
    return {"pid": pid, "start": _start_of(pid), "host": socket.gethostname(), **_system(), "since": time.time()}


def _system() -> dict[str, str | None]:
    """The start of this machine and the table of processes that is seen from here; None without /proc."""
    boot, table = None, None
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        table = os.readlink("/proc/self/ns/pid")
    return {"boot": boot, "table": table}


def _start_of(pid: int) -> str | None:
    """The start of a process, which tells it from a later one of the same number; None where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:  # without /proc, on a Mac
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "running"


def _remove_stale(lock: Path, own: Path, folder: Path) -> None:
    """Remove a lock whose process has ended; UserError where it still runs, or may, and for what is no lock."""
    try:
        if not stat.S_ISREG(lock.lstat().st_mode):
            raise UserError(f"{lock}: not a lock but a folder, link or device; remove it")
        with lock.open(encoding="utf-8") as file:
            with suppress(OSError):  # two processes that find one stale lock remove it in turn
                fcntl.flock(file, fcntl.LOCK_EX)
            if not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                return
            try:
                holder = dict(json.loads(file.read()))
            except (ValueError, TypeError):  # cut short by a kill
                holder = {}
            os.utime(own)  # the present, by the clock of the disk
            if _has_ended(holder, own.stat().st_mtime - lock.stat().st_mtime):
                lock.unlink()
                return
    except FileNotFoundError:  # released meanwhile
        return
    raise UserError(
        f"{folder}: in use by another process ({holder.get('pid', '?')} on {holder.get('host', '?')}); wait for its "
        f"end or choose another folder; if it has ended, remove {lock}"
    )


def _has_ended(holder: dict[str, Any], silent: float) -> bool:
    """True where the process is known to have ended, or is not seen from here and was ``silent`` (seconds) for long."""
    system = _system()
    if holder.get("host") != socket.gethostname():
        return silent > _SILENT
    if holder.get("boot") != system["boot"]:
        return True  # the machine has started anew since
    if holder.get("table") != system["table"]:  # of another container
        return silent > _SILENT
    return _start_of(holder.get("pid", 0)) != holder.get("start")


def _show_life(lock: Path, ended: threading.Event) -> None:
    while not ended.wait(_BEAT):
        with suppress(OSError):
            os.utime(lock)
