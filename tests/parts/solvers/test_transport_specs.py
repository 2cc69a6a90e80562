"""Every transport solver beside the balanced ones runs in a spec, from signals to kept tokens."""

from __future__ import annotations

import pytest
import torch

import pruneopt

SOLVERS = {
    "partial": {"mass": 0.6},
    "unbalanced": {"reach": 0.2, "epsilon": 0.05},
    "clustered": {"clusters": 12, "by": {"kind": "emd"}},
    "sliced": {"slices": 6},
    "linearised": {},
    "k_sources": {"keep": 0.25, "by": {"kind": "local_search"}},
}
READOUTS = {
    "clustered": ("dual_source", "row_cost"),
    "sliced": ("dual_source",),
    "linearised": ("dual_source", "row_cost"),
    "partial": ("row_sum", "dual_source"),
    "unbalanced": ("row_sum",),
    "k_sources": ("row_sum",),
}


def spec(name: str, readout: str) -> pruneopt.Spec:
    return pruneopt.load_spec(
        {
            "insertion": "post_encoder",
            "budget": {"keep": 0.25},
            "problem": {
                "kind": "transport",
                "cost": {
                    "near": {"kind": "cosine_distance"},
                    "place": {"kind": "spatial_gaussian", "sigma": 2},
                },
            },
            "solver": {"kind": name, **SOLVERS[name]},
            "readout": readout,
        }
    )


@pytest.mark.parametrize(("name", "readout"), [(n, r) for n, all_ in READOUTS.items() for r in all_])
def test_a_spec_can_name_the_solver(name: str, readout: str) -> None:
    gen = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    xy = torch.stack([x, y], 2).reshape(1, 24, 2).expand(2, -1, -1)
    signals = pruneopt.Signals({"features": torch.randn(2, 24, 8, generator=gen), "xy": xy})
    found = pruneopt.select(spec(name, readout), signals)
    assert found.keep.sum(1).tolist() == [6, 6]
    solution = found.solution
    assert solution.solver == name
    assert bool((solution.lower_bound <= solution.value + 1e-12).all())
    assert bool((solution.gap < 0.6 * solution.problem.cost_range()).all())
    least = found.importance.masked_fill(~found.keep, torch.inf).amin(1)
    assert bool((least >= found.importance.masked_fill(found.keep, -torch.inf).amax(1)).all())


def test_sorting_is_optimal_on_a_line_and_the_controls_are_feasible() -> None:
    gen = torch.Generator().manual_seed(1)
    x, y = torch.randn(3, 9, 1, generator=gen).double(), torch.randn(3, 7, 1, generator=gen).double()
    a, b = (torch.rand(3, n, generator=gen, dtype=torch.float64) for n in (9, 7))
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    cost = torch.cdist(x, y).square() + 3 * a[:, :, None]
    best = pruneopt.solve("emd", cost, a=a, b=b).value
    for factor in (1e-12, 1.0, 1e12):
        found = pruneopt.solve("sliced", cost * factor, a=a, b=b, slices=1)
        assert torch.allclose(found.value / factor, best, rtol=1e-9)
        assert bool((found.gap / factor < 1e-9).all())
        rough = pruneopt.solve("linearised", cost * factor, a=a, b=b)
        assert torch.allclose(rough.plan.sum(2), a) and torch.allclose(rough.plan.sum(1), b)
        independent = torch.einsum("bnm,bn,bm->b", cost, a, b)
        assert bool((best < rough.value / factor).all()) and bool((rough.value / factor < independent).all())
