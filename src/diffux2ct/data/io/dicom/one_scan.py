"""Frames of one series -> those of one scan: where acquisitions, phases or passes overlap, the fullest is taken."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

import numpy as np

from diffux2ct.data.io.dicom.frames import Frame
from diffux2ct.errors import UserError

_SAME_PLACE = 0.01  # mm: slices that lie closer are at one place
_NEAR = 0.75  # of the usual gap: slices of one scan never lie closer
_BORDER = 2  # slices that two blocks of one scan may share where they meet

Placed = tuple[float, Frame]  # mm along the normal


def one_scan(frames: Sequence[Frame], normal: np.ndarray, path: Path, notes: list[str]) -> list[Frame]:
    """One frame a place, in the order of the normal, never slices of two overlapping acquisitions between each other.

    Acquisitions of one patient and study that lie end to end (step and shoot) form one scan. Raises UserError where
    the slices of two scans cannot be separated.
    """
    owner_of = _owners(frames)
    placed = _without_copies(sorted(((float(f.position @ normal), f) for f in frames), key=_in_place))
    scans = sorted(_scans(placed, owner_of, path), key=lambda scan: (-len(_places(scan)), *_number(scan)))
    gaps = [np.median(np.diff(places)) for places in map(_places, scans) if len(places) > 1]
    near = max(_NEAR * float(np.median(gaps)) if gaps else 0.0, _SAME_PLACE)
    kept: list[Placed] = []
    left_out = 0
    for scan in scans:
        free = [item for item, gap in zip(scan, _distances(scan, kept), strict=True) if gap > near]
        if len(scan) - len(free) > _BORDER or owner_of(scan[0][1]) != owner_of(scans[0][0][1]):
            left_out += len(scan)
        else:
            kept = sorted([*kept, *free], key=_in_place)
    if left_out:
        number = scans[0][0][1].acquisition[0]
        notes.append(
            f"{path}: several acquisitions or phases; {f'number {number}' if number else 'the fullest'} taken, "
            f"{left_out} slices of others left out"
        )
    unique = [item for i, item in enumerate(kept) if i == 0 or item[0] - kept[i - 1][0] > _SAME_PLACE]
    if repeated := len(frames) - left_out - len(unique):
        notes.append(f"{path}: {repeated} slices at repeated positions dropped")
    _refuse_alternating(unique, path)
    return [frame for _, frame in unique]


def _in_place(item: Placed) -> tuple[float, int, str, int]:
    place, frame = item
    return (place, frame.order, str(frame.file), frame.index or 0)


def _number(scan: Sequence[Placed]) -> tuple[int, tuple[str, ...], int]:
    """Sorts acquisitions by their numbers, as numbers."""
    key = scan[0][1].acquisition
    return (int(key[0]) if key[0].isdigit() else 0, key, min(frame.order for _, frame in scan))


def _places(scan: Sequence[Placed]) -> np.ndarray:
    places = np.array([place for place, _ in scan])
    return places[np.diff(places, prepend=-np.inf) > _SAME_PLACE]


def _distances(scan: Sequence[Placed], kept: Sequence[Placed]) -> np.ndarray:
    """From each frame to the nearest one that is kept, mm."""
    own, others = (np.array([place for place, _ in items]) for items in (scan, kept))
    edges = np.concatenate([[-np.inf], others, [np.inf]])
    above = np.searchsorted(edges, own)
    return np.minimum(own - edges[above - 1], edges[above] - own)


def _without_copies(placed: Sequence[Placed]) -> list[Placed]:
    """Frames without the same image once more, by SOPInstanceUID; a UID that stands at several places is no proof."""
    kept: list[Placed] = []
    for same in _grouped(placed, lambda frame: (frame.uid, frame.index)):
        is_one = same[0][1].uid and same[-1][0] - same[0][0] <= _SAME_PLACE
        kept += same[:1] if is_one else same
    return sorted(kept, key=_in_place)


def _owners(frames: Sequence[Frame]) -> Callable[[Frame], tuple[str, ...]]:
    """A frame's owner, by the attributes that tell scans apart: one with a value for each slice is an anonymiser's."""
    values = [set(column) for column in zip(*(frame.owner for frame in frames), strict=True)]
    known = [i for i, found in enumerate(values) if 2 * len(found) <= len(frames)]
    return lambda frame: tuple(frame.owner[i] for i in known)


def _scans(placed: Sequence[Placed], owner_of: Callable[[Frame], Hashable], path: Path) -> list[list[Placed]]:
    """Frames by owner, acquisition and pass, each in the order of the normal."""
    groups = _grouped(placed, lambda frame: (owner_of(frame), frame.acquisition))
    if 2 * len(groups) > len(placed):  # a number for each slice separates nothing
        groups = _grouped(placed, lambda frame: (owner_of(frame), frame.acquisition[1:]))
    return [sorted(scan, key=_in_place) for group in groups for scan in _passes(group, path)]


def _grouped(placed: Iterable[Placed], key: Callable[[Frame], Hashable]) -> list[list[Placed]]:
    groups: dict[Hashable, list[Placed]] = defaultdict(list)
    for place, frame in placed:
        groups[key(frame)].append((place, frame))
    return list(groups.values())


def _passes(group: list[Placed], path: Path) -> list[list[Placed]]:
    """Frames of one acquisition by their passes along the table, as their InstanceNumbers show them."""
    numbers = _grouped(group, lambda frame: frame.order)
    if len(numbers) < 2:
        if len(group) - len(_places(group)) > _BORDER:
            raise UserError(f"{path}: slices of two scans in one series (positions repeat); export each one apart")
        return [group]
    if len(numbers) < len(group):
        first, second = ([own[i] for own in numbers if len(own) > 1] for i in (0, 1))
        shared = [item for item in second if item[0] <= max(place for place, _ in first)]
        if len(shared) > _BORDER:
            raise UserError(
                f"{path}: slices of two scans in one series (InstanceNumbers repeat); export each one apart"
            )
        return [group]
    runs: list[list[Placed]] = []
    direction = 0.0
    for item in sorted(group, key=lambda item: item[1].order):
        step = item[0] - runs[-1][-1][0] if runs else 0.0
        if not runs or step * direction < 0:
            runs.append([item])
            direction = 0.0
        else:
            runs[-1].append(item)
            direction = direction or (step if abs(step) > _SAME_PLACE else 0.0)
    return runs if 3 * len(runs) < len(group) else [group]  # numbers without an order make runs of two


def _refuse_alternating(unique: Sequence[Placed], path: Path) -> None:
    """UserError where small and large gaps take turns: slices of two scans, one between the other."""
    gaps = np.diff([place for place, _ in unique])
    if len(gaps) < 8:
        return
    low, high = np.sort(gaps)[[len(gaps) // 4, -len(gaps) // 4]]
    large = gaps > (low + high) / 2
    if high > 1.2 * low and np.mean(large[1:] != large[:-1]) > 0.9:
        raise UserError(
            f"{path}: gaps of {low:.1f} and {high:.1f} mm take turns: slices of two scans in one series; export each "
            "as a series of its own"
        )
