from pathlib import Path

import numpy as np
import pytest
import torch

from diffux2ct.data.labels import GROUPS, LABELS, class_table, reduce_classes, rod_label, screw_label, structure_values
from diffux2ct.data.prepared.dataset import PreparedDataset
from diffux2ct.data.prepared.writer import finish_dataset, write_case
from diffux2ct.errors import UserError


def test_names_and_groups_have_the_scheme_s_values():
    assert structure_values("sacrum") == {26}
    assert structure_values("L3") == {22}
    assert structure_values("ribs") == {30}
    assert structure_values("lumbar_spine") == {20, 21, 22, 23, 24, 25, 29}
    assert structure_values("hips") == {27, 28}
    assert structure_values("spine") == {*range(1, 26), 29}
    assert structure_values("screws") == {screw_label(i) for i in range(50)}
    assert structure_values("rods") == {rod_label(i) for i in range(50)}
    assert structure_values("implants") == {*range(101, 201), 41, 42, 43}
    assert all(0 < value < 256 for values in GROUPS.values() for value in values)


@pytest.mark.parametrize(
    ("structures", "message"),
    [
        (["sacrun"], "dataset.labels=sacrun: no such choice; did you mean sacrum?"),
        (["zzz"], "choose from spine,"),
        (["lumbar_spine", "L3"], "L3 and lumbar_spine share voxels"),
        (["sacrum", "sacrum"], "sacrum and sacrum share"),
        ("sacrum", r"dataset.labels=\[sacrum\]"),
    ],
)
def test_bad_structures_are_one_line(structures, message):
    with pytest.raises(UserError, match=message) as caught:
        class_table(structures)
    assert len(str(caught.value).splitlines()) == 1


def test_classes_follow_the_order_of_the_names():
    table = class_table(["lumbar_spine", "sacrum"])
    assert table[[0, 19, 20, 25, 26, 27, 29]].tolist() == [0, 0, 1, 1, 2, 0, 1]
    assert class_table(["sacrum", "lumbar_spine"])[26] == 1
    assert not class_table([]).any()


def test_blocks_take_their_most_frequent_structure_if_half_full():
    blocks = {
        (0, 0, 0): [1] * 8,
        (0, 0, 1): [0] * 4 + [2] * 4,
        (0, 1, 0): [0] * 5 + [1] * 3,
        (0, 1, 1): [0] * 3 + [1] * 2 + [2] * 3,
        (1, 0, 0): [0] * 2 + [1] * 3 + [2] * 3,
        (1, 0, 1): [0] * 8,
    }
    classes = np.zeros((4, 4, 4), np.uint8)
    for (i, j, k), values in blocks.items():
        classes[2 * i : 2 * i + 2, 2 * j : 2 * j + 2, 2 * k : 2 * k + 2] = np.reshape(values, (2, 2, 2))
    small = reduce_classes(classes, 2)
    assert [int(small[place]) for place in blocks] == [1, 2, 0, 2, 1, 0]
    assert np.array_equal(reduce_classes(classes, 1), classes)


def make(root: Path, values: list[int | None], **meta) -> Path:
    """A case for each of ``values``: a box of that label, in bone; None leaves the labels out."""
    for index, value in enumerate(values):
        hu = np.full((16, 16, 16), -1000.0, np.float32)
        hu[4:12, 2:10, 6:14] = 500.0
        labels = None if value is None else np.where(hu > 0, value, 0).astype(np.uint8)
        write_case(root, f"c{index}", hu, (4.0,) * 3, (0.0,) * 3, "lumbar", labels=labels, meta=meta)
    ids = [f"c{i}" for i in range(len(values))]
    settings = {"size": 16, "spacing": 4.0, "camera": "lumbar", "seed": 0}
    finish_dataset(root, "made", {"train": ids[:-1], "test": ids[-1:]}, settings)
    return root


def test_items_have_classes_at_the_size_that_is_asked_for(tmp_path):
    root = make(tmp_path / "set", [LABELS["L3"], LABELS["sacrum"], LABELS["sacrum"]])
    data = PreparedDataset(root, labels=["sacrum", "lumbar_spine"], size=8, cache=True)
    expected = torch.zeros(8, 8, 8, dtype=torch.uint8)
    expected[2:6, 1:5, 3:7] = 2
    for _ in range(2):
        assert data[0]["labels"].dtype == torch.uint8
        assert torch.equal(data[0]["labels"], expected)
    assert int(data[1, 5]["labels"].max()) == 1
    # A voxel of the label is where the bone is in the volume.
    item = PreparedDataset(root, labels=["lumbar_spine"])[0]
    assert torch.equal(item["labels"] == 1, item["volume"][0] > 0)
    assert "labels" not in PreparedDataset(root)[0]


def test_cases_without_labels_are_left_out(tmp_path):
    root = make(tmp_path / "set", [26, None, 26])
    assert [case.case_id for case in PreparedDataset(root, labels=["sacrum"]).cases] == ["c0"]
    assert len(PreparedDataset(root)) == 2


def test_a_folder_without_the_labels_is_named(tmp_path):
    bare = make(tmp_path / "bare", [None, None])
    with pytest.raises(UserError, match=r"bare: its train cases have no labels; put label files beside"):
        PreparedDataset(bare, labels=["sacrum"])
    root = make(tmp_path / "set", [26, 26])
    with pytest.raises(UserError, match=r"set: no case has a label of left_hip; set dataset.labels"):
        PreparedDataset(root, labels=["sacrum", "left_hip"])
    assert len(PreparedDataset(root, "test", labels=["sacrum", "left_hip"])) == 1
    with pytest.raises(UserError, match="no case has a label of left_hip, ribs"):
        PreparedDataset(root, "test", labels=["left_hip", "ribs"])
    own = make(tmp_path / "own", [26, 26], labels_are_own=True)
    with pytest.raises(UserError, match="numbers of a source's own"):
        PreparedDataset(own, labels=["sacrum"])


def test_damaged_labels_are_named(tmp_path):
    root = make(tmp_path / "set", [26, 26])
    np.save(root / "cases" / "c0" / "labels.npy", np.zeros((16, 16), np.uint8))
    with pytest.raises(UserError, match=r"c0/labels\.npy: uint8 \(16, 16\)"):
        PreparedDataset(root, labels=["sacrum"])
