"""The one exception that speaks to the user."""


class UserError(Exception):
    """Bad input. The message is one line: which file, what is wrong, what to do.

    Commands print it without a traceback and exit with status 1 (see ``diffux2ct.cli.run_main``).
    """
