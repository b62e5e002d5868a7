import pytest
import torch
from torch import nn

from diffux2ct.errors import UserError
from diffux2ct.reconstructors.regression import RegressionReconstructor


class Smear(nn.Module):
    """A network of one size."""

    size = 8

    def forward(self, xrays):
        return xrays["frontal"][:, :, :, None, :] + xrays["lateral"][:, :, :, :, None]


def xrays(frontal=(1, 1, 8, 8), lateral=(1, 1, 8, 8)):
    return {"frontal": torch.zeros(frontal), "lateral": torch.zeros(lateral)}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"front": torch.zeros(1, 1, 8, 8)}, "views front; this model takes frontal, lateral"),
        ({}, "views none"),
        (xrays(frontal=(8, 8)), r"frontal is torch.float32 \[8, 8\]; give floats \[batch, 1, rows, columns\]"),
        (xrays(lateral=(1, 3, 8, 8)), r"lateral is torch.float32 \[1, 3, 8, 8\]"),
        ({view: x.byte() for view, x in xrays().items()}, "frontal is torch.uint8"),
        (xrays(frontal=(1, 1, 16, 16)), r"frontal is \[1, 1, 16, 16\]; this model needs \[1, 1, 8, 8\]"),
        (xrays(lateral=(2, 1, 8, 8)), r"lateral is \[2, 1, 8, 8\]; this model needs \[1, 1, 8, 8\]"),
    ],
)
def test_xrays_that_do_not_fit_are_refused_in_one_line(inputs, words):
    with pytest.raises(UserError, match=words):
        RegressionReconstructor(Smear()).reconstruct(inputs)


def test_xrays_that_fit_are_taken():
    assert RegressionReconstructor(Smear()).reconstruct(xrays()).shape == (1, 1, 8, 8, 8)


@pytest.mark.parametrize("arguments", [(xrays(),), ("diffusion", {}), ("regression",)])
def test_calling_a_model_says_what_to_call(arguments):
    with pytest.raises(UserError, match=r"\(regression\); model.reconstruct\(xrays\) gives a CT"):
        RegressionReconstructor(Smear())(*arguments)
