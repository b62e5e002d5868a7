import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn

from diffux2ct.errors import UserError
from diffux2ct.evaluation.perception.weights import (
    WEIGHTS_VARIABLE,
    Unavailable,
    find_weights,
    load_exactly,
    package_file,
    read_arrays,
    read_state_dict,
)


def test_unavailable_says_in_one_line_what_is_missing_and_how_to_get_it():
    error = Unavailable("lpips", "the trunk is not here", "run: pip install it")
    assert str(error) == "lpips: the trunk is not here; run: pip install it"
    assert isinstance(error, UserError)
    assert (error.name, error.reason, error.command) == ("lpips", "the trunk is not here", "run: pip install it")


def test_a_given_path_comes_before_the_variable_and_names_in_their_order(tmp_path, monkeypatch):
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    assert find_weights(("a.pth",)) is None
    given, variable = tmp_path / "given", tmp_path / "variable"
    for folder in (given, variable):
        folder.mkdir()
        (folder / "b.pth").touch()
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(variable))
    assert find_weights(("a.pth", "b.pth")) == variable / "b.pth"
    assert find_weights(("a.pth",)) is None
    assert find_weights(("a.pth", "b.pth"), given) == given / "b.pth"
    assert find_weights(("a.pth",), given / "b.pth") == given / "b.pth"
    (variable / "a.pth").touch()
    assert find_weights(("a.pth", "b.pth")) == variable / "a.pth"


def test_a_given_path_that_is_not_there_is_an_error_and_not_another_file(tmp_path, monkeypatch):
    (tmp_path / "a.pth").touch()
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'typo'}: no such weights")):
        find_weights(("a.pth",), tmp_path / "typo")
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "typo"))
    with pytest.raises(UserError, match=f"typo: {WEIGHTS_VARIABLE} names no folder"):
        find_weights(("a.pth",))


def test_package_files_are_found_without_importing_the_package(tmp_path, monkeypatch):
    folder = tmp_path / "explosive_package" / "weights"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "net.pth").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert package_file("explosive_package", "weights/net.pth") == folder / "net.pth"
    assert package_file("explosive_package", "weights/other.pth") is None
    assert package_file("no_such_package_at_all", "weights/net.pth") is None


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (self.target.touch, ())


@pytest.mark.parametrize("read", [read_arrays, lambda path: read_state_dict(path, str(path))])
def test_a_file_cannot_run_code(tmp_path, read):
    target, path = tmp_path / "was-run", tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({"net": Evil(target)}))
    with pytest.raises(UserError, match=re.escape(f"{path}: cannot be read")):
        read(path)
    assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists()  # so the file was armed


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x04", pickle.dumps({"a": np.zeros(2)})[:-9]])
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    for read in (read_arrays, lambda path: read_state_dict(path, str(path))):
        with pytest.raises(UserError, match=re.escape(f"{path}: cannot be read")):
            read(path)


def test_arrays_come_back(tmp_path):
    path = tmp_path / "arrays.ckpt"
    path.write_bytes(pickle.dumps({"layer": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}))
    np.testing.assert_array_equal(read_arrays(path)["layer"]["kernel"], [[0, 1, 2], [3, 4, 5]])


def test_state_dicts_are_read_bare_or_wrapped_and_without_what_is_no_tensor(tmp_path):
    path = tmp_path / "weights.pth"
    for content in ({"w": torch.ones(2), "step": 3}, {"state_dict": {"w": torch.ones(2)}, "meta": {"a": 1}}):
        torch.save(content, path)
        assert read_state_dict(path, "w").keys() == {"w"}
        assert read_state_dict(path.read_bytes(), "w")["w"].tolist() == [1, 1]
    for content in ([torch.ones(2)], {"step": 3}):
        torch.save(content, path)
        with pytest.raises(UserError, match="holds no weights by name"):
            read_state_dict(path, "w")


def test_weights_must_fit_exactly():
    network = nn.Linear(2, 3)
    good = {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}
    load_exactly(network, good, "file")
    assert network(torch.ones(1, 2)).tolist() == [[2, 2, 2]]
    for state, fault in (
        ({"weight": good["weight"]}, "file: bias is missing; get the weights of Linear"),
        (good | {"scale": torch.ones(1)}, "file: has scale, which the network has not;"),
        (good | {"bias": torch.ones(2)}, r"file: has bias of \(2,\) instead of \(3,\);"),
        ({"scale": torch.ones(1)}, r"file: weight is missing \(and 2 faults more\);"),
    ):
        with pytest.raises(UserError, match=fault):
            load_exactly(network, state, "file")
