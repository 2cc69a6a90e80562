"""Checks of what is refused before a subset problem is solved; `test_certificates` runs them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from subset_cases import unit

from pruneopt.errors import ProblemError, SpecError
from pruneopt.problems.subset import SubsetProblem
from pruneopt.spec.schema import Spec


def refused(match: str, build: Callable[[], object], error: type[Exception] = ProblemError) -> None:
    """`build()` raises `error` with `match` in its words; anything else is an assertion that fails."""
    try:
        build()
    except error as found:
        assert match in str(found), f"refused, but with other words: {found}"
    else:
        raise AssertionError(f"accepted; {match!r} was expected")


def accepted(build: Callable[[], object]) -> None:
    """`build()` is not refused."""
    try:
        build()
    except (ProblemError, SpecError) as found:
        raise AssertionError(f"refused: {found}") from found


def two(values: torch.Tensor) -> torch.Tensor:
    """A batch of two whose second sample is `values`; the first is `[N]` ones or a harmless matrix."""
    first = torch.ones_like(values) if values.dim() == 1 else torch.eye(len(values), dtype=values.dtype)
    return torch.stack([first, values])


def check_asymmetric_terms_are_refused() -> None:
    """Where a kind knows unordered pairs, what differs by more than rounding is refused with the cure."""
    g = torch.Generator().manual_seed(0)
    whole = torch.rand(5, 5, generator=g, dtype=torch.float64)
    whole = whole @ whole.T + 5 * torch.eye(5)
    scores = torch.ones(2, 5, dtype=torch.float64)
    for kind in ("max_min", "max_sum", "log_det", "independent_set"):
        for share, fine in ((0.0, True), (0.9e-5, True), (1.1e-5, False), (0.5, False)):
            pairwise = whole.clone()
            pairwise[1, 3] += share * whole.max()
            mean = (pairwise + pairwise.T) / 2

            build = partial(SubsetProblem.build, kind, 2, unary=scores, threshold=0.5)
            if fine:
                accepted(partial(build, pairwise=two(pairwise)))
            else:
                for words in ("pairwise of sample 1 is not symmetric", "problem.symmetric=mean"):
                    refused(words, partial(build, pairwise=two(pairwise)))
            build(pairwise=two(mean))
    one_way = whole.clone()
    one_way[1, 3] += 9
    SubsetProblem.build("facility_location", 2, unary=scores, pairwise=two(one_way))
    mask = torch.tensor([[True] * 5, [True, True, True, False, True]])
    SubsetProblem.build("max_min", 2, pairwise=two(one_way), mask=mask)  # only padding differs


def check_shipped_terms_are_symmetric() -> None:
    """What this project ships and calls symmetric passes at full width, in every dtype of a model."""
    from pruneopt.parts.costs.feature_sq_l2 import FeatureSquaredL2
    from pruneopt.registry import registry
    from pruneopt.testing.cases import make_signals

    found = {name: registry("costs").get(name) for name in registry("costs")}
    parts = [part() for name, part in found.items() if "symmetric" in part.tags]
    parts += [registry("kernels").get(name)() for name in registry("kernels")]
    parts.append(FeatureSquaredL2(source_signal="features", target_signal="features"))
    assert len(parts) >= 4 and not FeatureSquaredL2().symmetric
    for part in parts:
        assert part.symmetric, part.name
        for dtype in (torch.float32, torch.bfloat16):
            signals = make_signals(part.needs, tokens=300, width=1024, dtype=dtype)
            out = part(signals)
            kind = "log_det" if "psd" in part.tags else "max_min"
            SubsetProblem.build(kind, 5, pairwise=out, mask=signals.mask)
            SubsetProblem.build("max_sum", 5, pairwise=out, mask=signals.mask)


def check_specs_of_asymmetric_terms_are_refused() -> None:
    """TopV's cost in DivPrune's problem is refused on loading the spec; with the cure it has one meaning."""
    from pruneopt.pruner import Pruner
    from pruneopt.spec.load import load_spec
    from pruneopt.testing.cases import make_signals

    def spec(*more: str, kind: str = "max_min", solver: str = "farthest_point") -> Spec:
        problem = {"kind": kind, "pairwise": {"distance": {"kind": "feature_sq_l2"}}}
        data = {"problem": problem, "solver": {"kind": solver}, "budget": {"keep": 4}}
        return load_spec({"insertion": {"kind": "prefill_layer", "layer": 2}, **data}, more)

    refused("feature_sq_l2 is not symmetric", spec, SpecError)
    refused("is not symmetric", partial(spec, kind="max_sum", solver="greedy_max_sum"), SpecError)
    refused("symmetric=mean", spec, SpecError)
    refused("symmetric can be mean", lambda: spec("problem.symmetric=max"), SpecError)
    refused(
        "symmetric has no meaning for top_k",
        lambda: load_spec("fastv", ["problem.symmetric=mean"]),
        SpecError,
    )
    same = "problem.pairwise.distance.target_signal=hidden_in"
    spec(same)  # a cost of one signal with itself is symmetric
    cured = spec("problem.symmetric=mean")
    swap = ["source_signal=post_attention_norm", "target_signal=hidden_in"]
    swapped = spec("problem.symmetric=mean", *(f"problem.pairwise.distance.{s}" for s in swap))
    assert cured.hash != spec(same).hash and load_spec(cured.to_spec()).hash == cured.hash
    signals = make_signals(cured.needs, tokens=9)
    # unchecked, as inside a forward pass: the walk itself must not depend on the direction
    one, other = (Pruner(s.stages[0]).select(signals, check=False) for s in (cured, swapped))
    assert one.keep.equal(other.keep) and one.solution.value.allclose(other.solution.value)
    stated = one.solution.problem.pairwise
    assert stated.equal(stated.transpose(1, 2))


def check_indefinite_kernels_are_refused() -> None:
    """Eigenvalues below zero are refused with the ridge that cures them; those of rounding are not."""
    from pruneopt.pruner import select
    from pruneopt.spec.load import load_spec
    from pruneopt.testing.cases import make_signals

    base = torch.linalg.qr(torch.rand(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[
        0
    ]

    def build(least: float, ridge: float = 0.0, scale: float = 1.0) -> SubsetProblem:
        values = torch.tensor([least, 0.0, 0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
        kernel = base @ torch.diag(values) @ base.T + ridge * torch.eye(6, dtype=torch.float64)
        return SubsetProblem.build("log_det", 3, pairwise=scale * two((kernel + kernel.T) / 2))

    for scale in (1e-15, 1.0, 1e15):
        accepted(partial(build, 0.0, scale=scale))
        accepted(partial(build, -1e-7, scale=scale))
        refused("pairwise of sample 1 is no kernel", lambda scale=scale: build(-1e-4, scale=scale))
    refused("smallest eigenvalue is -0.104", lambda: build(-0.104))
    refused("problem.ridge=0.105 or more", lambda: build(-0.104))
    build(-0.104, ridge=0.105)
    for dtype in (torch.float32, torch.float64):
        x = unit(2, 300, 20, torch.Generator().manual_seed(1)).to(dtype)
        SubsetProblem.build("log_det", 5, pairwise=x @ x.transpose(1, 2))
    refused("ridge must be a number above 0", lambda: load_spec("cdpruner", ["problem.ridge=-1"]), SpecError)
    refused("ridge has no meaning for max_min", lambda: load_spec("divprune", ["problem.ridge=1"]), SpecError)
    plain, raised = load_spec("cdpruner"), load_spec("cdpruner", ["problem.ridge=0.5"])
    assert plain.hash != raised.hash and load_spec(raised.to_spec()).hash == raised.hash
    signals = make_signals(plain.needs, tokens=9)
    before, after = (select(s, signals).solution.problem.pairwise for s in (plain, raised))
    torch.testing.assert_close(after - before, 0.5 * torch.eye(9).expand_as(before))


def check_values_are_refused_by_name() -> None:
    """NaN, infinities, counts, masks and quotas: the argument and the sample are named."""
    n = 4
    ones, eye = torch.ones(2, n), torch.eye(n).expand(2, n, n).clone()
    no = torch.zeros(2, n, dtype=torch.bool)

    def put(tensor: torch.Tensor, place: tuple[int, ...], value: float) -> torch.Tensor:
        out = tensor.clone()
        out[place] = value
        return out

    def max_min(**more: object) -> SubsetProblem:
        return SubsetProblem.build("max_min", 2, pairwise=more.pop("pairwise", eye), **more)

    for wrong in (math.nan, math.inf, -math.inf):
        refused("unary is not finite in sample 1", lambda w=wrong: SubsetProblem.build(
            "top_k", 2, unary=put(ones, (1, 2), w)))  # fmt: skip
        refused(
            "pairwise is not finite in sample 1", lambda w=wrong: max_min(pairwise=put(eye, (1, 0, 3), w))
        )
    padded = torch.tensor([[True] * n, [True, True, True, False]])
    max_min(pairwise=put(eye, (1, 0, 3), math.nan), mask=padded)
    rows = torch.ones(2, 2, n)
    for wrong in (math.nan, -math.inf):
        refused("NaN or -infinity in sample 1", lambda w=wrong: max_min(anchors=put(rows, (1, 1, 0), w)))
        max_min(anchors=put(rows, (1, 1, 3), wrong), mask=padded)
    refused("a row with some +infinity in sample 1", lambda: max_min(anchors=put(rows, (1, 1, 0), math.inf)))
    absent = rows.clone()
    absent[1, 1] = math.inf
    max_min(anchors=absent)
    refused(
        "anchor_strength is NaN in sample 1",
        lambda: max_min(anchors=rows, anchor_strength=torch.tensor([[1.0, 1.0], [1.0, math.nan]])),
    )
    refused(
        "anchors have no meaning for top_k", lambda: SubsetProblem.build("top_k", 2, unary=ones, anchors=rows)
    )
    most = no.clone()
    most[1, 1:] = True
    refused("sample 1 protects 3 tokens but the budget is 2", lambda: max_min(protected=most))
    refused(
        "protected marks padding in sample 1", lambda: max_min(mask=padded, protected=put(no, (1, 3), True))
    )
    refused("counts [2, 3] are not k [2, 2]", lambda: SubsetProblem.build(
        "top_k", torch.tensor([2, 2]), unary=ones, counts=(2, 3)))  # fmt: skip
    for name in ("mask", "protected"):
        refused(f"{name} must be torch.bool", lambda name=name: max_min(**{name: ones}))
    refused("unary must be floating", lambda: SubsetProblem.build("top_k", 2, unary=ones.long()))
    refused("threshold, got nan", lambda: SubsetProblem.build(
        "independent_set", 2, unary=ones, pairwise=eye, threshold=math.nan))  # fmt: skip

    def quotas(share: list[int], protected: list[int] = (), group: list[int] = (0, 0, 1, 1)) -> SubsetProblem:
        forced = no.clone()
        forced[1, list(protected)] = True
        return SubsetProblem.build(
            "quota", 2, unary=ones, protected=forced, group=torch.tensor([[0, 0, 1, 1], list(group)]),
            quota=torch.tensor([[1, 1], share]),
        )  # fmt: skip

    quotas([1, 1], [0, 2])
    refused("group 0 of sample 1 protects 2 tokens but its quota is 1", lambda: quotas([1, 1], [0, 1]))
    refused("group 1 of sample 1 protects 1 tokens but its quota is 0", lambda: quotas([2, 0], [2]))
    refused("quotas of sample 1 sum to 3", lambda: quotas([2, 1]))
    refused("quota of sample 1 is negative", lambda: quotas([-1, 3]))
    refused(
        "group 1 of sample 1 has only 1 tokens but its quota is 2", lambda: quotas([0, 2], [], [0, 0, 0, 1])
    )
    refused("outside 0..1", lambda: quotas([1, 1], [], [0, 0, 1, 2]))
