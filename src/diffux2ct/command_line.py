"""Commands as a user types them, for the hints that messages end with."""

import re
import shlex

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException


def as_typed(key: str, value: str) -> str:
    """``key=value`` as it is typed into a shell so that Hydra takes the value as the text that it is."""
    override = f"{key}={value}"
    try:
        plain = OverridesParser.create().parse_override(override).value() == value
    except HydraException:
        plain = False
    if not plain:
        # Hydra's own quotes: a backslash counts only before a quote.
        escaped = re.sub(r'(\\*)("|$)', lambda m: 2 * m[1] + ("\\" + m[2] if m[2] else ""), value)
        override = f'{key}="{escaped}"'
    return shlex.quote(override)
