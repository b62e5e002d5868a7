"""bf16 only where the hardware has it: elsewhere a convolution takes hundreds of times longer."""

import pytest
import torch

from diffux2ct.reconstructors import precision


@pytest.fixture(params=[True, False], ids=["with bf16", "without"])
def arithmetic(request, monkeypatch):
    monkeypatch.setattr(precision, "computes_bf16", lambda kind: request.param)
    precision._note.cache_clear()
    return request.param


def test_bf16_is_taken_only_where_the_device_computes_in_it(arithmetic, capsys):
    x = torch.rand(4, 4)
    with precision.autocast("bf16", "cpu"):
        product = x @ x
    assert product.dtype == (torch.bfloat16 if arithmetic else torch.float32)
    assert precision.effective("bf16", "cpu") == ("bf16" if arithmetic else "fp32")
    assert capsys.readouterr().err.count("note: precision=bf16") == (0 if arithmetic else 1)


def test_one_process_of_several_says_so(monkeypatch, capsys):
    monkeypatch.setattr(precision, "computes_bf16", lambda kind: False)
    for rank, notes in (("1", 0), ("0", 1)):
        precision._note.cache_clear()
        monkeypatch.setenv("RANK", rank)
        assert precision.effective("bf16", "cpu") == "fp32"
        assert capsys.readouterr().err.count("note: ") == notes


def test_fp32_stays_fp32(arithmetic, capsys):
    x = torch.rand(4, 4)
    with precision.autocast("fp32", "cpu"):
        assert (x @ x).dtype == torch.float32
    assert precision.effective("fp32", torch.device("cpu")) == "fp32"
    assert not capsys.readouterr().err
