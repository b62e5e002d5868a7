"""The prepared folder as a torch Dataset: numpy and torch only, so that training needs nothing else."""

import copy
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffux2ct.errors import UserError
from diffux2ct.geometry.hounsfield import HU_WINDOW, normalize_hu

FORMAT = 1
PUBLIC_SETS = ("lumbarv", "lidc_idri", "ctspine1k", "ctpelvic1k")
XRAY_SCALE = (
    8.0  # line integral that "fixed" maps to 1: about 36 cm of water; a torso from the side stays below
)


@dataclass(frozen=True)
class CaseRecord:
    """A case as the model sees it: ``spacing`` and ``origin`` (x, y, z) in mm, LPS, after any size reduction."""

    case_id: str
    patient: str
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    path: Path


class PreparedDataset(torch.utils.data.Dataset):
    """Cases of one split: a volume [1, D, H, W] and its X-rays [1, D, W], [1, D, H], all in [-1, 1], float32.

    root, split: the prepared folder (docs/data.md), and "train", "val" or "test".
    size: voxels per side that the model sees, the stored size divided by a whole number (block means of HU and of
    line integrals); None = as stored. window: HU that become -1 and 1 (clipped).
    xray_normalization: see ``normalize_xray``.
    cache: keep the items in memory; they are shared, so do not write to them.
    Raises UserError where the folder is missing, empty, unfinished or damaged (missing: three lines).
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
    ) -> None:
        self.root = Path(root)
        self.split = split
        self.window = (float(window[0]), float(window[1]))
        self.xray_normalization = xray_normalization
        description = read_description(self.root)
        stored = int(description["size"])
        self.size = stored if size is None else int(size)
        if self.size < 1 or stored % self.size:
            whole = [stored // k for k in range(1, stored // 8 + 1) if stored % k == 0]
            raise UserError(
                f"{self.root}: cubes of {stored} voxels cannot be read at {size}; choose size from {whole}"
            )
        self._factor = stored // self.size
        self._stored = stored
        self._cache: dict[int, dict] | None = {} if cache else None
        self.cases = self._read_manifest()
        self._check_arrays()

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict:
        """{"volume", "frontal", "lateral", "index"}; X-ray rows are z, so they match the volume's first axis."""
        index = range(len(self))[index]  # IndexError past the end, so that plain iteration stops
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        hu = _block_mean(self._load(index, "volume"), self._factor)
        item: dict = {"volume": torch.from_numpy(normalize_hu(hu, self.window).astype(np.float32))[None]}
        for view in ("frontal", "lateral"):
            image = torch.from_numpy(_block_mean(self._load(index, view), self._factor))
            item[view] = normalize_xray(image, self.xray_normalization)[None]
        item["index"] = index
        if self._cache is not None:
            self._cache[index] = item
        return item

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
            total += self[index]["volume"]
        return (total / len(self)).float()

    def _load(self, index: int, name: str) -> np.ndarray:
        path = self.cases[index].path / f"{name}.npy"
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: missing or damaged; delete {path.parent} and prepare it again"
            ) from error

    def _check_arrays(self) -> None:
        n = self._stored
        for index in range(len(self)):
            for name, shape, kind in (
                ("volume", (n,) * 3, "i"),
                ("frontal", (n, n), "f"),
                ("lateral", (n, n), "f"),
            ):
                array = self._load(index, name)
                if array.shape != shape or array.dtype.kind != kind:
                    raise UserError(
                        f"{self.cases[index].path / name}.npy: {array.dtype} {array.shape}, where dataset.json "
                        f"promises {shape}; delete that case and prepare it again"
                    )

    def _read_manifest(self) -> list[CaseRecord]:
        path = self.root / "manifest.csv"
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        counts = {name: sum(row["split"] == name for row in rows) for name in ("train", "val", "test")}
        if not counts.get(self.split):
            raise UserError(f"{self.root}: no cases in split {self.split!r}; it has {counts}")
        cases = []
        for row in rows:
            if row["split"] != self.split:
                continue
            stored = [float(v) for v in row["spacing"].split()]
            origin = [float(v) for v in row["origin"].split()]
            # The first block's centre lies half a block in, less half a voxel.
            origin = [o + (self._factor - 1) / 2 * s for o, s in zip(origin, stored, strict=True)]
            spacing = [s * self._factor for s in stored]
            folder = self.root / "cases" / row["case_id"]
            cases.append(
                CaseRecord(row["case_id"], row["patient"], _triple(spacing), _triple(origin), folder)
            )
        return cases


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
        out = "" if root == Path("data") / name else f" out={root}"
        raise UserError(
            f"{root}: no prepared data set here.\n"
            f"Put its CT scans (DICOM series, NIfTI, MHA or NRRD) into a folder of their own, DIR.\n"
            f"Then: python scripts/prepare_dataset.py dataset={name} raw=DIR{out}"
        ) from None
    except ValueError as error:
        raise UserError(f"{root / 'dataset.json'}: damaged; run prepare_dataset.py again") from error
    if description.get("format") != FORMAT or not (root / "manifest.csv").is_file():
        raise UserError(f"{root}: not a prepared folder of format {FORMAT}; prepare it again")
    return description


def normalize_xray(line_integrals: Tensor, mode: str = "max", scale: float = XRAY_SCALE) -> Tensor:
    """Line integrals [..., V, U] to [-1, 1], float32.

    mode: "max" divides each image by its own maximum (absolute scale is lost, as in X2CT-GAN); "fixed" divides by
    ``scale`` and clips. An empty image becomes -1 everywhere.
    """
    images = line_integrals.float()
    if mode == "max":
        peak = images.amax(dim=(-2, -1), keepdim=True)
        unit = images / torch.where(peak > 0, peak, torch.ones_like(peak))
    elif mode == "fixed":
        unit = images / scale
    else:
        raise UserError(f"xray_normalization={mode}: choose max or fixed")
    return 2.0 * unit.clamp(0.0, 1.0) - 1.0


def _block_mean(array: np.ndarray, factor: int) -> np.ndarray:
    """float32 means over blocks of ``factor`` along every axis."""
    values = np.array(array, dtype=np.float32)  # a copy: torch may not share a read-only map
    for axis in range(values.ndim) if factor > 1 else ():
        shape = values.shape
        blocks = (*shape[:axis], shape[axis] // factor, factor, *shape[axis + 1 :])
        values = values.reshape(blocks).mean(axis=axis + 1, dtype=np.float32)
    return values


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    x, y, z = values
    return (float(x), float(y), float(z))
