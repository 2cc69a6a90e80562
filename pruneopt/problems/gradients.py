"""What backward does with a result that autograd did not follow: the envelope theorem, or a named refusal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pruneopt.errors import ProblemError
from pruneopt.tensors import first_true


def refuse_gradient(tensor: Tensor, inputs: tuple[Tensor, ...], *, words: str) -> Tensor:
    """The same values, tied to those `inputs` that require a gradient; backward raises ProblemError(words).

    A plain detached tensor would give a silent zero as soon as a loss has another term.
    """
    return _Refusal.apply(tensor, words, *inputs)  # type: ignore[no-any-return]


def refuses(tensor: Tensor) -> bool:
    """Whether `refuse_gradient` made it."""
    return tensor.grad_fn is not None and tensor.grad_fn.name() == "_RefusalBackward"


def envelope(
    value: Tensor,
    problem: tuple[Tensor, Tensor, Tensor],
    *,
    optimum: tuple[Tensor, Tensor, Tensor],
    proved: Tensor,
    words: str,
) -> Tensor:
    """`value [B]` of a transport problem `(cost, a, b)` with the gradient `(plan, f, g)` of its optimum.

    The potentials are centred by their marginal, so `a . (gradient in a)` is 0: the gradient is that of a
    problem whose marginals are divided by their sums.  `optimum`: plan `[B,N,M]`, f `[B,N]`, g `[B,M]`.
    Backward through a problem that is not `proved [B]` raises ProblemError(words): the theorem holds at an
    optimum only.  Where the optimum has several plans or potentials this is one of the subgradients.
    """
    return _Envelope.apply(value, *problem, *optimum, proved, words)  # type: ignore[no-any-return]


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - called by torch
        ctx: Any, tensor: Tensor, words: str, *inputs: Tensor
    ) -> Tensor:
        ctx.words = words
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise ProblemError(ctx.words)


class _Envelope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, *rest: Any) -> Tensor:
        cost, a, b, plan, f, g, proved, words = rest
        ctx.save_for_backward(a, b, plan, f, g, proved)
        ctx.dtypes, ctx.words = (cost.dtype, a.dtype, b.dtype), words
        return value.view_as(value)

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b, plan, f, g, proved = ctx.saved_tensors
        open_ = (grad != 0) & ~proved
        if bool(open_.any()):
            raise ProblemError(f"problem {first_true(open_)}: {ctx.words}")
        found = (plan * grad[:, None, None], _centred(f, a) * grad[:, None], _centred(g, b) * grad[:, None])
        return None, *(x.to(t) for x, t in zip(found, ctx.dtypes, strict=True)), *(None,) * 5


def _centred(potential: Tensor, mass: Tensor) -> Tensor:
    mass = mass.double()
    return potential - (mass * potential).sum(1, keepdim=True) / mass.sum(1, keepdim=True)
