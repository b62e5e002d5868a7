"""The project's prose: plain words, so that a reader need not stumble."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BANNED = re.compile(
    r"what came of|be had here|may be told|a loss that is lost|has no use for|\btold\b|\blacks? its\b|gives up its"
    r"|\bcan be had\b|taken back\b|\bits watch\b|no use for\b"
    r"|\b(config|command|dataset|folder|file|run|loop|model|source)s? (knows?|answers?|asks)\b",
    re.IGNORECASE,
)
# A docstring begins with the thing or a verb.
OPENING = re.compile(r'"""(What|Whether|How) (?!.*\?)')


def prose():
    yield ROOT / "README.md"
    for folder, suffixes in {
        "docs": (".md",),
        "configs": (".yaml", ".py"),
        "scripts": (".py", ".sh"),
        "src/diffux2ct": (".py", ".html", ".js", ".css"),
    }.items():
        yield from sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)


def test_no_banned_phrase_is_left():
    left = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in prose()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (match := BANNED.search(line) or (path.suffix == ".py" and OPENING.search(line)))
    ]
    assert left == []
