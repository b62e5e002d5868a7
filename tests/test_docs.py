"""Links of the documents into the code point at the line of what they name."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINE_LINK = re.compile(r"\[`(?P<name>[\w.]+)`\]\((?P<path>[\w./-]+\.py)#L(?P<line>\d+)\)")
LINK = re.compile(r"\]\((?!https?:|mailto:)(?P<target>[^)#\s]+)[^)]*\)")


def line_of(source: Path, name: str) -> int:
    """1-based line where ``name`` or ``Class.method`` is defined."""
    lines = source.read_text(encoding="utf-8").splitlines()
    at = 0
    for part in name.split("."):
        pattern = re.compile(rf"\s*(def|class) {part}\b|{part}\b.*=")
        at = next((n for n, line in enumerate(lines[at:], start=at + 1) if pattern.match(line)), 0)
        assert at, f"{source}: no {name}"
    return at


@pytest.mark.parametrize("doc", DOCS, ids=lambda path: path.name)
def test_links_point_at_the_line_of_what_they_name(doc, request):
    text = doc.read_text(encoding="utf-8")

    def renewed(match: re.Match) -> str:
        line = line_of((doc.parent / match["path"]).resolve(), match["name"])
        return f"[`{match['name']}`]({match['path']}#L{line})"

    current = LINE_LINK.sub(renewed, text)
    if request.config.getoption("--update-goldens"):
        doc.write_text(current, encoding="utf-8")
    else:
        assert text == current, "pytest tests/test_docs.py --update-goldens renews the line numbers"


@pytest.mark.parametrize("doc", DOCS, ids=lambda path: path.name)
def test_linked_files_exist(doc):
    targets = [match["target"] for match in LINK.finditer(doc.read_text(encoding="utf-8"))]
    missing = [target for target in targets if not (doc.parent / target).exists()]
    assert not missing
