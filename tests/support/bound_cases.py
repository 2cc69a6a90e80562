"""Thousands of tiny random subset problems at once, and their optima by enumeration in a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pruneopt.problems.subset import SubsetProblem

TOKENS = 7
EVERY = (torch.arange(2**TOKENS)[:, None] >> torch.arange(TOKENS)) % 2 == 1  # all choices, [128,7]


def draw(kind: str, count: int, seed: int) -> SubsetProblem:
    """`count` problems: half ragged, half with protected tokens, every scale from 1e-12 to 1e12.

    Features have a width of 1 to 8, so kernels are often singular, and every fourth problem repeats a token.
    Every third problem has pairwise terms of no structure, of both signs (except as a kernel).
    """
    g = torch.Generator().manual_seed(seed)
    which = torch.arange(count)
    scale = 10.0 ** (torch.rand(count, generator=g, dtype=torch.float64) * 24 - 12)
    x = torch.randn(count, TOKENS, 8, generator=g, dtype=torch.float64)
    x = x * (torch.arange(8) < torch.randint(1, 9, (count, 1, 1), generator=g))
    x = x / x.norm(dim=2, keepdim=True)
    x[which % 4 == 0, 1] = x[which % 4 == 0, 2]
    gram = x @ x.transpose(1, 2)
    gram = (gram + gram.transpose(1, 2)) / 2
    noise = torch.randn(gram.shape, generator=g, dtype=torch.float64)
    noise = noise if kind == "facility_location" else (noise + noise.transpose(1, 2)) / 2
    pairwise = gram if kind in ("log_det", "independent_set", "facility_location") else 1 - gram
    if kind not in ("log_det", "independent_set"):
        pairwise = torch.where((which % 3 == 0)[:, None, None], noise, pairwise)
    real = (
        torch.arange(TOKENS)
        < torch.where(which % 2 == 0, TOKENS, torch.randint(2, TOKENS + 1, (count,), generator=g))[:, None]
    )
    k = (torch.rand(count, generator=g) * real.sum(1)).long() + 1
    order = torch.rand(count, TOKENS, generator=g).masked_fill(~real, -1).argsort(1, descending=True)
    many = (torch.rand(count, generator=g) * (k + 1)).long() * (torch.rand(count, generator=g) < 0.5)
    protected = torch.zeros_like(real).scatter(1, order, torch.arange(TOKENS) < many[:, None])
    unary = torch.randn(count, TOKENS, generator=g, dtype=torch.float64)
    anchors = None
    if kind in ("max_min", "max_sum", "facility_location"):
        anchors = torch.rand(count, 2, TOKENS, generator=g, dtype=torch.float64) * scale[:, None, None]
        anchors[which % 5 < 3, 0] = math.inf
        anchors[which % 5 < 4, 1] = math.inf
    if kind in ("log_det", "facility_location"):
        unary = unary.abs()
    big = kind not in ("facility_location", "independent_set")  # whose pairwise term stays as it is
    return SubsetProblem.build(
        kind,
        k,
        unary=unary * (1 if kind == "log_det" else scale[:, None]),
        pairwise=pairwise * (scale[:, None, None] if big else 1),
        mask=real,
        protected=protected,
        anchors=anchors,
        threshold=0.3 if kind == "independent_set" else None,
    )


def values(p: SubsetProblem) -> Tensor:
    """`[B,128]` objective of every choice in `EVERY`, -inf where it is not allowed; written from the text."""
    size = EVERY.sum(1)
    many = size != p.k[:, None]
    if p.kind == "independent_set":
        many = (size > p.k[:, None]) | (size == 0)
    return of_any_size(p).masked_fill(many, -math.inf)


def of_any_size(p: SubsetProblem) -> Tensor:
    """The same for choices of any number of tokens."""
    hot = EVERY.double()
    pairwise, unary = p.pairwise.double(), p.unary.double().masked_fill(~p.real, 0)
    both = EVERY[:, :, None] & EVERY[:, None, :] & ~torch.eye(TOKENS, dtype=torch.bool)
    bad = (EVERY[None] & ~p.real[:, None]).any(2) | (p.protected[:, None] & ~EVERY[None]).any(2)
    clean = pairwise.masked_fill(~(p.real[:, :, None] & p.real[:, None, :]), 0)
    rows = None if p.anchors is None else p.anchors.masked_fill(~p.real[:, None, :], math.inf)
    if p.kind == "independent_set":
        bad |= ((pairwise > p.threshold)[:, None] & both[None]).flatten(2).any(2)
        worth = unary @ hot.T
    elif p.kind == "max_sum":
        worth = torch.einsum("si,bij,sj->bs", hot, clean.tril(-1) + clean.triu(1), hot) / 2
        own = unary + rows.masked_fill(rows == math.inf, 0).sum(1)
        worth = worth + own @ hot.T
    elif p.kind == "max_min":
        inside = clean[:, None].masked_fill(~both[None], math.inf).flatten(2).amin(2)
        outside = rows.amin(1)[:, None].masked_fill(~EVERY[None], math.inf).amin(2)
        worth = torch.minimum(inside, outside)
        worth = torch.where(worth == math.inf, 0.0, worth)
    elif p.kind == "facility_location":
        best = pairwise[:, None].masked_fill(~EVERY[None, :, None, :], -math.inf).amax(3)
        worth = (best.masked_fill(~p.real[:, None], 0).nan_to_num(neginf=0.0) * unary[:, None]).sum(2)
        paid = rows[:, None].masked_fill(~EVERY[None, :, None, :], math.inf).amin(3)
        worth = worth - paid.masked_fill(paid == math.inf, 0).sum(2)
    else:
        kernel = unary[:, :, None] * clean * unary[:, None, :]
        block = torch.where(both[None], kernel[:, None], 0.0)
        own = kernel.diagonal(dim1=1, dim2=2)[:, None]
        block = block + torch.diag_embed(torch.where(EVERY[None], own, 1.0))
        sign, worth = torch.linalg.slogdet(block)
        # what is positive definite to rounding, of the block scaled to a unit diagonal
        root = block.diagonal(dim1=2, dim2=3).clamp_min(1e-300).sqrt()
        least = torch.linalg.eigvalsh(block / root[:, :, :, None] / root[:, :, None, :])[:, :, 0]
        bad |= (sign <= 0) | (least < 1e-14)
    return worth.masked_fill(bad, -math.inf)


def some_keep(p: SubsetProblem, seed: int) -> Tensor:
    """A random choice of the right size with the protected tokens, which may break a threshold."""
    g = torch.Generator().manual_seed(seed)
    rank = torch.rand(p.shape, generator=g).masked_fill(~p.real, -1) + p.protected.float()
    first = torch.arange(TOKENS) < p.k[:, None]
    return torch.zeros_like(p.real).scatter(1, rank.argsort(1, descending=True), first)
