"""Muon: momentum whose matrices are made orthogonal before a step (Jordan et al. 2024).

The step of a weight matrix has all its singular values near one, so that rare directions are learned as fast as common
ones. Scaled as in "Muon is scalable for LLM training" (Liu et al. 2025, arXiv 2502.16982), so that its elements are as
large as those of an Adam step and one rate serves both.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from diffux2ct.errors import UserError
from diffux2ct.training.processes.distributed import part_of

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Of the iteration a x + b x^3 + c x^5 on singular values: from above 0.01 into 0.7 to 1.2 in five steps."""
_RMS = 0.2  # of an Adam step's elements, in units of the rate
_SMALLEST = 8  # rows and columns of a matrix: below, few directions are left to make orthogonal


class Muon(torch.optim.Optimizer):
    """Muon for weight matrices, convolutions read as [out, in * kernel]; Adam for biases, norms and narrow weights.

    lr: the rate of both. momentum: of the matrices. betas, eps: Adam's. weight_decay: decoupled, of both.
    Sharded weights (FSDP) are gathered for their step. Raises UserError for a value out of range.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float | int = 2e-3,
        momentum: float | int = 0.95,
        betas: Sequence[float | int] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | int = 0.0,
    ) -> None:
        for name, value in [("momentum", momentum), *(("betas", beta) for beta in betas)]:
            if not 0 <= value < 1:
                raise UserError(f"optim.{name}={value}: must lie between 0 and 1")
        for name, value in {"lr": lr, "eps": eps, "weight_decay": weight_decay}.items():
            if not value >= 0:
                raise UserError(f"optim.{name}={value}: must not be negative")
        defaults = {"lr": lr, "momentum": momentum, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of each parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                update = self._matrix_step if is_matrix(parameter) else self._adam_step
                parameter.add_(update(parameter, parameter.grad, group), alpha=-group["lr"])
        return loss

    def _matrix_step(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(state["momentum"], group["momentum"])  # Nesterov
        whole = update.full_tensor() if isinstance(update, DTensor) else update
        step = orthogonal(whole.flatten(1))
        step = step.mul_(_RMS * max(step.shape) ** 0.5).reshape(whole.shape).to(parameter.dtype)
        return part_of(step, parameter)

    def _adam_step(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        first, second = group["betas"]
        count = float(state["step"])
        mean = state["exp_avg"].lerp_(gradient, 1 - first) / (1 - first**count)
        square = state["exp_avg_sq"].lerp_(gradient.square(), 1 - second) / (1 - second**count)
        return mean.div_(square.sqrt_().add_(group["eps"]))


def is_matrix(parameter: Tensor) -> bool:
    """True for weights that have at least 8 rows and as many columns."""
    return parameter.ndim > 1 and min(len(parameter), parameter[0].numel()) >= _SMALLEST


def orthogonal(matrix: Float[Tensor, "m n"], steps: int = 5) -> Float[Tensor, "m n"]:
    """Near U V^T of the matrix U S V^T, by Newton and Schulz's iteration.

    Singular values above 1 % of the norm end in 0.7 to 1.2; smaller ones stay below.
    Each iteration multiplies the matrix by a polynomial of its Gram matrix, which is small where the matrix is wide:
    the polynomials are multiplied first, and the matrix once.
    """
    wide = matrix.float() / (matrix.float().norm() + 1e-7)
    tall = wide.shape[0] > wide.shape[1]
    wide = wide.mT if tall else wide
    gram = wide @ wide.mT
    product = identity = torch.eye(len(gram), device=gram.device)
    a, b, c = _QUINTIC
    for _ in range(steps):
        factor = torch.addmm(a * identity + b * gram, gram, gram, alpha=c)
        product = factor @ product
        gram = factor @ gram @ factor
    wide = product @ wide
    return wide.mT if tall else wide
