"""Commands. Each module has a ``main``; bad input ends in one line and a non-zero exit."""

import io
import os
import signal
import sys
from collections.abc import Callable

# Before torch is imported, whose OpenMP reads it then. Threads that wait for work spin, as is OpenMP's default: a step
# of a small model has thousands of short loops, and threads that sleep between them take twice as long. Where several
# of our processes share the cores they sleep, since each would keep the cores from the others.
if os.environ.get("LOCAL_WORLD_SIZE", "1") != "1" or any(word.startswith("launcher=") for word in sys.argv):
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def run_main(command: Callable[[], object]) -> None:
    """Run a command; turn what the user can mend into one line on stderr and exit status 1.

    A run that a signal ended exits with status 128 + the signal's number: 130 for Ctrl-C, 143 for SIGTERM.
    ``DIFFUX2CT_TRACEBACK=1`` shows the traceback instead, for those who develop.
    """
    from diffux2ct.command_line import in_form
    from diffux2ct.errors import Stopped, UserError, remedy

    for stream in (sys.stdout, sys.stderr):  # file names are bytes: none may end a command when it is printed
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        command()
    except UserError as error:
        if os.environ.get("DIFFUX2CT_TRACEBACK"):
            raise
        sys.exit(in_form(f"error: {error}"))
    except OSError as error:
        if os.environ.get("DIFFUX2CT_TRACEBACK"):
            raise
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {where}{error.strerror or error}; {remedy(error)}")
    except Stopped as stopped:
        _end(str(stopped), stopped.signal)
    except KeyboardInterrupt:
        _end("interrupted; run the same command again to go on", signal.SIGINT)


def _end(message: str, number: int) -> None:
    if message:
        print(message, file=sys.stderr)
    sys.exit(128 + number)
