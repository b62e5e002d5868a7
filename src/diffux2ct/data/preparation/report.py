"""The report of a preparation or of its dry run, as lines, a table and a file."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffux2ct.data.prepared.writer import SPLITS, label_names
from diffux2ct.files.atomic import write_text


@dataclass
class PrepareReport:
    """Cases written now and found finished, scans left out with their reasons, notes, the split, and the summary.

    bad: scans that cannot be used. not_used: files that are left out by design: radiographs, duplicates, and scans that
    ``min_filled`` excludes. Both are (path below raw, reason).
    """

    written: int = 0
    found: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)
    not_used: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    split: dict[str, list[str]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def summarize(
    name: str, split: Mapping[str, Sequence[str]], records: Mapping[str, Mapping[str, Any]], report: PrepareReport
) -> dict[str, Any]:
    """Plain values of summary.json. split: case ids by part; records: case.json of each. No times: two runs agree."""
    first = {record["source"] + str(record.get("series_uid")): record for record in records.values()}
    spacings = [record["orig_spacing"] for record in first.values()]
    labels = Counter(name for record in records.values() for name in label_names([record]).values())
    ranges = [record["hu_range"] for record in records.values() if "hu_range" in record]
    patients = {part: len({records[i]["patient"] for i in split[part]}) for part in SPLITS}
    return {
        "name": name,
        "cases": {part: len(split[part]) for part in SPLITS},
        "patients": patients,
        "scans": len(first),
        "orig_spacing": {
            axis: [min(s[i] for s in spacings), max(s[i] for s in spacings)] for i, axis in enumerate("xyz")
        },
        "hu_range": [min(r[0] for r in ranges), max(r[1] for r in ranges)] if ranges else None,
        "cases_with_labels": sum(bool(record["has_labels"]) for record in records.values()),
        "cases_with_label": {name: labels[name] for name in label_names(records.values()).values()},
        "left_out_by_reason": by_reason([*report.bad, *report.not_used]),
        "bad": [list(line) for line in report.bad],
        "not_used": [list(line) for line in report.not_used],
        "notes": report.notes,
    }


def by_reason(left_out: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Counts of what was left out by reason, most first; reasons without their file names, numbers and remedies."""
    counts = Counter(_kind(reason) for _, reason in left_out)
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def summary_table(summary: Mapping[str, Any], listed: bool = True) -> str:
    """The summary for the eye; listed: with a line for each that was left out."""
    cases, patients = summary["cases"], summary["patients"]
    lines = [f"{summary['name']}: {sum(cases.values())} cases from {summary['scans']} scans", ""]
    lines += [f"  {'':8}{'cases':>8}{'patients':>10}"]
    lines += [f"  {part:8}{cases[part]:8}{patients[part]:10}" for part in SPLITS]
    lines += [""]
    for axis, (low, high) in summary["orig_spacing"].items():
        lines.append(f"  spacing of the scans, {axis}  {low:.4g} to {high:.4g} mm")
    if summary["hu_range"]:
        lines.append("  HU of the cases          {} to {}".format(*summary["hu_range"]))
    lines.append(f"  cases with labels        {summary['cases_with_labels']}")
    if summary["cases_with_label"]:
        lines.append("    " + ", ".join(f"{name} {n}" for name, n in summary["cases_with_label"].items()))
    lines += ["", f"  left out: {len(summary['bad']) + len(summary['not_used'])}"]
    lines += [f"    {count:5}  {reason}" for reason, count in summary["left_out_by_reason"].items()]
    for what in ("bad", "not_used") if listed else ():
        lines += [f"  {source}: {reason}" for source, reason in summary[what]]
    return "\n".join(lines) + "\n"


def write_summary(root: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json and summary.txt."""
    write_text(root / "summary.json", json.dumps(summary, indent=1) + "\n")
    write_text(root / "summary.txt", summary_table(summary))


def _kind(reason: str) -> str:
    """``truncated, 5 of 9 bytes; fetch it again`` -> ``truncated, # of # bytes``."""
    fault = re.sub(r" ?\(.*?\)", "", reason.split(";")[0])
    fault = re.sub(r"\S*[/\\]\S*", "...", fault)
    return re.sub(r"\d+(\.\d+)?", "#", fault).strip()
