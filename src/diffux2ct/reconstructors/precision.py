"""bf16 autocast, on hardware that computes in bf16."""

import os
import sys
from functools import cache
from typing import Literal

import torch


@cache
def computes_bf16(kind: str) -> bool:
    """True where a kind of device ("cpu", "cuda") has bf16 arithmetic.

    A CPU without it (x86 before AVX-512, many laptops) runs bf16 convolutions hundreds of times slower than fp32.
    """
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        return kind != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a build of PyTorch without oneDNN
        return False


def effective(precision: str, device: torch.device | str) -> Literal["bf16", "fp32"]:
    """The precision that ``precision`` ("bf16" or "fp32") means on a device: fp32 where there is no bf16 arithmetic.

    Says so once on standard error.
    """
    kind = torch.device(device).type
    if precision != "bf16":
        return "fp32"
    if computes_bf16(kind):
        return "bf16"
    _note(kind)
    return "fp32"


def autocast(precision: str, device: torch.device | str) -> torch.autocast:
    """Autocast to bf16 where ``precision`` is "bf16" and the device computes in it; else no change."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=effective(precision, device) == "bf16")


@cache
def _note(kind: str) -> None:
    if int(os.environ.get("RANK", "0")) == 0:  # once for all processes of a run
        print(f"note: precision=bf16: this {kind} has no bf16 arithmetic, computing in fp32", file=sys.stderr)
