"""The prepared folder as a torch Dataset: numpy and torch only, so that training needs nothing else."""

import copy
import itertools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffux2ct.data.io.ct_image import triple
from diffux2ct.data.io.dicom.kind import has_dicom_magic
from diffux2ct.data.labels import check_structures, class_table, reduce_classes
from diffux2ct.data.prepared.augment import Acquisition, Augmentation, Augmenter
from diffux2ct.data.prepared.tables import check_case_id, numbers, read_rows
from diffux2ct.data.prepared.writer import FORMAT, SPLITS, read_case
from diffux2ct.errors import UserError
from diffux2ct.intensity import HU_WINDOW, normalize_hu, normalize_xray
from diffux2ct.types import VIEWS
from diffux2ct.xray.camera import Camera, spacing_xyz
from diffux2ct.xray.effects import XrayRandomization
from diffux2ct.xray.pose import view_names

_SCANS = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".dcm", ".ima", ".dicom")
PUBLIC_SETS = ("lumbarv", "lidc_idri", "ctspine1k", "ctpelvic1k")
_DESCRIBED: dict[str, Callable[[Any], bool]] = {  # entries of dataset.json that are read, and what they may be
    "size": lambda size: type(size) is int and size > 0,
    "window": lambda window: window is None or (_numbers(window) and len(window) == 2 and window[0] < window[1]),
    "spacing": lambda spacing: spacing is None or _positive(spacing if isinstance(spacing, list) else [spacing]),
    "camera": lambda camera: camera is None or isinstance(camera, dict),
    "label_names": lambda names: names is None or (isinstance(names, dict) and all(v.isdecimal() for v in names)),
}


@dataclass(frozen=True)
class CaseRecord:
    """A case as the model sees it: ``spacing`` and ``origin`` (x, y, z) in mm, LPS, after any size reduction."""

    case_id: str
    patient: str
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    path: Path


class PreparedDataset(torch.utils.data.Dataset):
    """Cases of one split: a volume [1, D, H, W] and its X-rays [1, D, W] or (lateral) [1, D, H], in [-1, 1], float32.

    root, split: the prepared folder (docs/data.md), and "train", "val" or "test".
    size: voxels per side that the model sees, the stored size divided by a whole number (block means of HU and of
    line integrals); None = as stored. window: HU that become -1 and 1 (clipped).
    xray_normalization: see `diffux2ct.intensity.normalize_xray`.
    cache: keep the cases in memory; they are shared, so do not write to them.
    randomize: exposures that the X-rays of an item (index, seed), as training reads it, are drawn from (docs/data.md);
    an item read by its index alone is as prepared.
    augment: ranges of deformations; ``augment`` then turns a batch of items into one of other bodies (docs/method.md),
    in which the exposures of ``randomize`` are drawn, too. Items stay as prepared.
    views: azimuths of the X-rays in degrees, see `diffux2ct.xray.pose`; 0 and 90 are those that were stored, the others
    are projected from the cube as a preparation would.
    labels: structures or groups of ``data/labels``; items then have "labels" [D, H, W], uint8, k where the k-th
    of them is and 0 elsewhere (at a smaller size: ``reduce_classes``), and cases without labels are left out.
    Raises UserError where the folder is missing, empty, unfinished or damaged (missing: three lines), was made for
    another window, has no such labels, or X-rays that cannot be projected.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        size: int | None = None,
        window: Sequence[float | int] = HU_WINDOW,
        xray_normalization: str = "max",
        cache: bool = False,
        randomize: XrayRandomization | None = None,
        labels: Sequence[str] | None = None,
        augment: Augmentation | None = None,
        views: Sequence[float | int] = (0, 90),
    ) -> None:
        self.root = Path(root)
        self.views = view_names(views)
        self.split = split
        self.window = (float(window[0]), float(window[1]))
        self.xray_normalization = xray_normalization
        self.randomize = randomize
        self._classes = class_table(labels or ())
        self.labels = tuple(labels or ())
        description = read_description(self.root)
        self._check_window(description.get("window"))
        stored = int(description["size"])
        self.size = stored if size is None else int(size)
        if self.size < 1 or stored % self.size:
            raise UserError(_wrong_size(self.root, stored, self.size))
        self._factor = stored // self.size
        self._camera, self._side = description.get("camera"), _side(description)
        self._stored = stored
        self._cache: dict[int, dict] | None = {} if cache else None
        self.cases = self._read_manifest(description.get("spacing"))
        if self.labels:
            self._keep_labelled(description.get("label_names"))
        self._check_arrays()
        missing = [view for view in self.views if view not in VIEWS]
        self._projected: list[Acquisition] = []
        if missing:
            how = f"dataset.views={list(views)}", missing
            self._projected = [
                Acquisition.of_case(self.root, case.case_id, case.spacing[0] / self._factor, *how)
                for case in self.cases
            ]
        self.augment = None if augment is None else self._augmenter(augment)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        """{"volume", an entry a view, "camera", "index"}; X-ray rows are z, as the volume's first axis.

        camera [4]: ``Camera.panel_map`` of the case; missing where the folder does not describe its camera.

        key: an index, or (index, seed): the X-rays as ``randomize`` exposes them, fixed by that seed alone.
        """
        index, seed = key if isinstance(key, tuple) else (key, None)
        index = range(len(self))[index]  # IndexError past the end, so that plain iteration stops
        case = self._case(index)
        item: dict = {"volume": case["volume"]}
        pair = {view: case[view] for view in self.views}
        if self.randomize and seed is not None and self.augment is None:
            pair = self.randomize.expose(pair, seed)
        item |= {view: normalize_xray(image, self.xray_normalization)[None] for view, image in pair.items()}
        if self.labels:
            item["labels"] = case["labels"]
        if "camera" in case:
            item["camera"] = case["camera"]
        item["index"] = index
        return item

    def _case(self, index: int) -> dict[str, Tensor]:
        """The volume [1, D, H, W] in [-1, 1] and each view's raw line integrals, at the requested size."""
        if self._cache and index in self._cache:
            return self._cache[index]
        case, folder, projected = {"volume": self._volume(index)}, self.cases[index].path, {}
        if self._projected:
            hu = np.array(load_array(folder, "volume"), np.float32)
            projected = self._projected[index].prepared(torch.from_numpy(hu))
        for view in self.views:
            image = projected[view].numpy() if view in projected else load_array(folder, view)
            case[view] = torch.from_numpy(_block_mean(image, self._factor))
        if self.labels:
            classes = reduce_classes(self._classes[load_array(self.cases[index].path, "labels")], self._factor)
            case["labels"] = torch.from_numpy(classes)
        if self._camera is not None and self._side is not None:
            # X-rays that were stored with the scans may each have a camera of their own.
            own = (read_case(self.root, self.cases[index].case_id) or {}).get("camera_geometry", self._camera)
            case["camera"] = torch.tensor(Camera.from_dict(own).panel_map(self._side))
        if self._cache is not None:
            self._cache[index] = case
        return case

    def _volume(self, index: int) -> Float[Tensor, "1 d h w"]:
        if self._cache and index in self._cache:
            return self._cache[index]["volume"]
        hu = _block_mean(load_array(self.cases[index].path, "volume"), self._factor)
        return torch.from_numpy(normalize_hu(hu, self.window).astype(np.float32))[None]

    def _augmenter(self, ranges: Augmentation) -> Augmenter:
        if any("left" in name or "right" in name for name in self.labels):
            ranges = replace(ranges, mirror=0.0)
        acquisitions = [self.acquisition(index, "dataset.augment") for index in range(len(self))]
        normalization = self.xray_normalization
        return Augmenter(ranges, acquisitions, self.size, self.reduced, self.window, normalization, self.randomize)

    @property
    def reduced(self) -> bool:
        """True if the cubes are smaller than the stored ones."""
        return self._factor > 1

    def acquisition(self, index: int, purpose: str) -> Acquisition:
        """The projection of a case's X-rays, with the voxels of this size; see `Acquisition.of_case`."""
        case = self.cases[index]
        return Acquisition.of_case(self.root, case.case_id, case.spacing[0], purpose, self.views)

    def first(self, count: int) -> "PreparedDataset":
        """The same dataset cut to its first ``count`` cases."""
        if count < 1:
            raise UserError(f"max_cases={count}: must be at least 1")
        shorter = copy.copy(self)
        shorter.cases = self.cases[:count]
        return shorter

    def mean_volume(self) -> Float[Tensor, "1 d h w"]:
        """Mean of the split's volumes in [-1, 1]: the floor that every score stands beside."""
        total = torch.zeros(1, self.size, self.size, self.size, dtype=torch.float64)
        for index in range(len(self)):
            total += self._volume(index)
        return (total / len(self)).float()

    def _keep_labelled(self, names: dict[str, str] | None) -> None:
        labelled = [case for case in self.cases if (case.path / "labels.npy").is_file()]
        if not labelled:
            raise UserError(
                f"{self.root}: its {self.split} cases have no labels; put label files beside the scans and prepare "
                "them again (docs/data.md), or use another dataset.root"
            )
        self.cases = labelled
        # label_<number> and mask are numbers of a source's own, not ours.
        found = None if names is None else [int(v) for v, name in names.items() if name not in (f"label_{v}", "mask")]
        check_structures(self.root, self.labels, found, every=self.split == "train")

    def _check_window(self, made_for: Sequence[float | int] | None) -> None:
        if made_for is not None and [float(edge) for edge in made_for] != list(self.window):
            edges, asked = (",".join(f"{edge:g}" for edge in pair) for pair in (made_for, self.window))
            raise UserError(
                f"{self.root}: its volumes and X-rays were made for HU in [{edges}], not [{asked}]; use "
                f"'dataset.window=[{edges}]', or prepare it again with that window"
            )

    def _check_arrays(self) -> None:
        n = self._stored
        expected = [("volume", (n,) * 3, "i"), ("frontal", (n, n), "f"), ("lateral", (n, n), "f")]
        expected += [("labels", (n,) * 3, "u")] if self.labels else []
        for index in range(len(self)):
            for name, shape, kind in expected:
                array = load_array(self.cases[index].path, name)
                if array.shape != shape or array.dtype.kind != kind:
                    raise UserError(
                        f"{self.cases[index].path / name}.npy: {array.dtype} {array.shape}, where dataset.json "
                        f"promises {shape}; delete that case and prepare it again"
                    )

    def _read_manifest(self, step: Any) -> list[CaseRecord]:
        rows = read_manifest(self.root)
        counts = {name: sum(row["split"] == name for row in rows) for name in SPLITS}
        if not counts.get(self.split):
            raise UserError(f"{self.root}: no cases in split {self.split!r}; it has {counts}")
        cases = []
        for row in rows:
            where = f"{self.root / 'manifest.csv'}: {row['case_id']}:"
            stored = numbers(row["spacing"], 3, f"{where} spacing", positive=True)
            if not np.allclose(stored, stored[0] if step is None else step, rtol=1e-4, atol=0):
                raise UserError(f"{where} spacing is {row['spacing']!r}; give the cubic voxels of dataset.json")
            origin = numbers(row["origin"], 3, f"{where} origin")
            # The first block's centre lies half a block in, less half a voxel.
            origin = [o + (self._factor - 1) / 2 * s for o, s in zip(origin, stored, strict=True)]
            spacing = [s * self._factor for s in stored]
            folder = self.root / "cases" / row["case_id"]
            record = CaseRecord(row["case_id"], row["patient"], triple(spacing), triple(origin), folder)
            cases += [record] * (row["split"] == self.split)
        return cases


def read_manifest(root: Path) -> list[dict[str, str]]:
    """Rows of manifest.csv: every case in a folder of its own below cases, every patient in one part of the split.

    Raises UserError, naming the row, where that is not so: a prepared folder may come from somebody else.
    """
    path = root / "manifest.csv"
    try:
        rows = read_rows(path, ("case_id", "patient", "split", "spacing", "origin"), separators=",")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); prepare the folder again") from error
    seen, parts = set(), {}
    for row in rows:
        check_case_id(path, row["case_id"], seen)
        seen.add(row["case_id"].lower())
        if row["split"] not in SPLITS:
            raise UserError(f"{path}: {row['case_id']}: split is {row['split']!r}; give {', '.join(SPLITS)}")
        if (other := parts.setdefault(row["patient"], row["split"])) != row["split"]:
            raise UserError(
                f"{path}: patient {row['patient']} is in both {other} and {row['split']}; put all of a patient into one"
            )
    return rows


def load_array(folder: Path, name: str) -> np.ndarray:
    """An array of a case's folder, mapped into memory. UserError where it is missing or damaged."""
    path = folder / f"{name}.npy"
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: missing or damaged; delete {folder} and prepare it again") from error


def read_description(root: str | Path) -> dict:
    """dataset.json of a finished prepared folder. UserError (three lines where nothing is there)."""
    root = Path(root)
    try:
        description = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (root / "cases").is_dir():
            raise UserError(
                f"{root}: its preparation is not finished; run the same prepare_dataset.py command again, it goes on"
            ) from None
        name = root.name if root.name in PUBLIC_SETS else "folder"
        scan = _first_scan(root)
        if scan is not None:
            raise UserError(
                f"{root}: raw scans, not a prepared data set (it has {scan}).\n"
                f"Prepare them into another folder, OTHER: python scripts/prepare_dataset.py dataset={name} raw={root} "
                f"out=OTHER\nThen: python train.py dataset={name} dataset.root=OTHER"
            ) from None
        out = "" if root == Path("data") / name else f" out={root}"
        raise UserError(
            f"{root}: no prepared data set here.\n"
            f"Put its CT scans (DICOM series, NIfTI, MHA or NRRD) into a folder of their own, DIR.\n"
            f"Then: python scripts/prepare_dataset.py dataset={name} raw=DIR{out}"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{root / 'dataset.json'}: damaged; run prepare_dataset.py again") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise UserError(f"{root}: not a prepared folder of format {FORMAT}; prepare it again")
    if not (root / "manifest.csv").is_file():
        raise UserError(f"{root}: not a prepared folder of format {FORMAT} (no manifest.csv); prepare it again")
    for key, valid in _DESCRIBED.items():
        if not valid(description.get(key)):
            raise UserError(f"{root / 'dataset.json'}: {key} is {description.get(key)!r}; prepare the folder again")
    return description


def _block_mean(array: np.ndarray, factor: int) -> np.ndarray:
    """float32 means over blocks of ``factor`` along every axis."""
    # Axis by axis, which rounds unlike ``intensity.block_mean`` and is faster: training reads every case so.
    values = np.array(array, dtype=np.float32)  # a copy: torch may not share a read-only map
    for axis in range(values.ndim) if factor > 1 else ():
        shape = values.shape
        blocks = (*shape[:axis], shape[axis] // factor, factor, *shape[axis + 1 :])
        values = values.reshape(blocks).mean(axis=axis + 1, dtype=np.float32)
    return values


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) in (int, float) and math.isfinite(v) for v in values)


def _positive(values: Any) -> bool:
    return _numbers(values) and len(values) in (1, 3) and min(values) > 0


def _wrong_size(root: Path, stored: int, asked: int) -> str:
    sizes = [stored // k for k in range(1, stored // 8 + 1) if stored % k == 0] or [stored]
    # The experiments' models: the nearest that such cubes suit.
    hint = "experiment=pilot trains at 32" if 32 in sizes else "with size=small or tiny for a smaller model"
    return (
        f"{root}: cubes of {stored} voxels cannot be read at {asked}; train with "
        f"dataset.size={' or '.join(map(str, sizes))} ({hint})"
    )


def _first_scan(root: Path) -> str | None:
    """The name of a file below ``root`` that looks like a raw scan, None if there is none among the first thousand."""
    files = (Path(folder) / name for folder, _, names in os.walk(root) for name in sorted(names))
    found = (p for p in itertools.islice(files, 1000) if p.name.lower().endswith(_SCANS) or has_dicom_magic(p))
    return next((str(path.relative_to(root)) for path in found), None)


def _side(description: Mapping[str, Any]) -> float | None:
    """mm of a cube's side; None where dataset.json does not have the spacing."""
    spacing = description.get("spacing")
    return None if spacing is None else spacing_xyz(spacing)[0] * description["size"]
