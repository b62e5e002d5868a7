"""Commands. Each module has a ``main``; bad input ends in one line and a non-zero exit."""

import os
import sys
from collections.abc import Callable


def run_main(command: Callable[[], object]) -> None:
    """Run a command; turn what the user can mend into one line on stderr and exit status 1.

    ``DIFFUX2CT_TRACEBACK=1`` shows the traceback instead, for those who develop.
    """
    from diffux2ct.errors import UserError

    try:
        command()
    except UserError as error:
        if os.environ.get("DIFFUX2CT_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")
    except OSError as error:
        if os.environ.get("DIFFUX2CT_TRACEBACK"):
            raise
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {where}{error.strerror or error}; free space or fix the path, then run again")
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again to go on")
