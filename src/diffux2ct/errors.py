"""The exceptions that speak to the user."""

import errno

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a full disk, a full quota, and a limit on the size of files


class UserError(Exception):
    """Bad input. The message is one line: which file, what is wrong, what to do.

    Commands print it without a traceback and exit with status 1 (see ``diffux2ct.cli.run_main``).
    """


class Stopped(Exception):
    """A signal ended a run in good order, its work saved. The message says how to go on; empty where another says it.

    Commands print it and exit with status 128 + ``signal``, as a shell reports a command that a signal ended.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def remedy(error: BaseException | None) -> str:
    """The remedy for a failure of the file system, which ends a message."""
    if getattr(error, "errno", None) in NO_ROOM:
        return "free space, then run again"
    return "give a path that can be used, then run again"
