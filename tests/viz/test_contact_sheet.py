from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffux2ct.data.prepared.writer import finish_dataset, write_case
from diffux2ct.errors import UserError
from diffux2ct.viz import contact_sheet
from diffux2ct.viz.contact_sheet import case_strip, write_contact_sheets


def tiles(strip: np.ndarray) -> list[np.ndarray]:
    """The five pictures of a strip."""
    return [strip[16:, i * 130 : i * 130 + 128] for i in range(5)]


def test_left_up_and_front_are_where_a_radiologist_has_them() -> None:
    """A bone that is superior, anterior and on the patient's left."""
    hu = np.full((32, 32, 32), -1000, np.int16)
    hu[12:20, 12:20, 12:20] = 40
    hu[22:28, 4:17, 15:28] = 1000  # reaches the middle planes in y and x
    hu[16, 4:10, 22:28] = 1000
    frontal, lateral = hu.max(1).astype(float) + 1000, hu.max(2).astype(float) + 1000
    axial, coronal, sagittal, front, side = tiles(case_strip(hu, frontal, lateral, "case"))
    bright = [np.argwhere(tile.min(-1) > 240).mean(0) for tile in (axial, coronal, sagittal, front, side)]
    assert bright[0][0] < 50 < 70 < bright[0][1]  # axial: anterior up, left on the right
    assert bright[1][0] < 50 < 70 < bright[1][1]  # coronal: superior up, left on the right
    assert bright[2][0] < 50 > bright[2][1]  # sagittal: superior up, anterior on the left
    assert bright[3][0] < 50 < 70 < bright[3][1]
    assert bright[4][0] < 50 > bright[4][1]


def test_labels_tint_the_slices() -> None:
    hu = np.zeros((16, 16, 16), np.int16)
    labels = np.zeros(hu.shape, np.uint8)
    labels[8, 4:8, 4:8] = 20
    flat = np.ones((16, 16))
    plain, tinted = (case_strip(hu, flat, flat, "", lab) for lab in (None, labels))
    colour = tiles(tinted)[0].astype(int)
    grey = tiles(plain)[0].astype(int)
    assert (np.ptp(colour[40:56, 40:56], axis=-1) > 50).all()
    assert (np.ptp(grey[40:56, 40:56], axis=-1) == 0).all()


def folder(root: Path, names: list[str]) -> Path:
    for seed, name in enumerate(names):
        hu = np.full((16, 16, 16), -1000, np.int16)
        hu[2:14, 4:12, 4:12] = 20 + seed
        write_case(root, name, hu, (8.0,) * 3, (0.0,) * 3, "lumbar")
    finish_dataset(root, "made", {"train": names}, {"size": 16, "spacing": 8.0})
    return root


def test_pages_are_few_and_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact_sheet, "_ROWS", 2)
    root = folder(tmp_path, ["a", "b", "c", "d", "e"])
    sheets = write_contact_sheets(root)
    assert [sheet.name for sheet in sheets] == ["contact_sheet.png", "contact_sheet_2.png"]
    first = Image.open(sheets[0])
    assert first.size == (2 * 648 + 4, 16 + 2 * 144 + 4)
    assert Image.open(sheets[1]).size == (648, 16 + 144)
    titles = np.asarray(first)[:16].max(-1)  # of the five pictures, over both columns
    assert all(titles[:, left + i * 130 :][:, :128].max() > 200 for left in (0, 652) for i in range(5))
    before = sheets[0].read_bytes()
    finish_dataset(root, "made", {"train": ["a", "b", "c", "d"]}, {"size": 16, "spacing": 8.0})
    assert write_contact_sheets(root) == sheets[:1]
    assert not sheets[1].exists()
    assert sheets[0].read_bytes() == before


def test_unfinished_or_damaged_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="finish its preparation"):
        write_contact_sheets(tmp_path)
    root = folder(tmp_path, ["a"])
    (root / "cases" / "a" / "frontal.npy").write_bytes(b"no")
    with pytest.raises(UserError, match="missing or damaged"):
        write_contact_sheets(root)
