"""TopV against its card: test vectors, and what the printed readout does not depend on."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch

from pruneopt.errors import CostBlindReadoutWarning
from pruneopt.pruner import Pruner, combine, select, transport_problem
from pruneopt.signals import Attention, Signals
from pruneopt.spec.load import load_spec
from pruneopt.spec.schema import Spec

PRESETS = ("topv", "topv/printed", "topv/target_last", "topv/one_sided", "topv/dual")
CARD = ["problem.cost.spatial.sigma=1", "steps=[]"]


def card_signals() -> Signals:
    """The 2x2 example of the card."""
    return Signals(
        {
            "hidden_in": torch.tensor([[[1.0, 0], [0, 2], [1, 1], [3, 0]]]),
            "post_attention_norm": torch.tensor([[[1.0, 1], [0, 1], [2, 0], [1, 0]]]),
            "xy": torch.tensor([[[0, 0], [1, 0], [0, 1], [1, 1]]]),
            "grid": torch.full((1, 4, 2), 2),
        }
    )


def random_signals(width: int = 6, height: int = 4, seed: int = 0) -> Signals:
    generator = torch.Generator().manual_seed(seed)
    n = width * height
    xy = torch.stack([torch.arange(n) % width, torch.arange(n) // width], 1)
    return Signals(
        {
            "hidden_in": torch.randn(2, n, 8, generator=generator),
            "post_attention_norm": torch.randn(2, n, 8, generator=generator),
            "xy": xy.expand(2, -1, -1),
            "grid": torch.tensor([width, height]).expand(2, n, 2),
        }
    )


def importance(spec: Spec, signals: Signals) -> torch.Tensor:
    chosen = select(spec, signals)
    assert chosen.importance is not None
    return chosen.importance


def with_epsilon(name: str) -> Spec:
    extra = [] if name == "topv/dual" else ["solver.epsilon=0.5"]
    return load_spec(name, CARD + extra)


def test_cost_terms_of_the_card() -> None:
    spec = load_spec("topv", ["problem.cost.spatial.sigma=1"])
    terms = {s.label: s.part for s in spec.stages[0].problem.cost}
    signals = card_signals()
    feature = terms["feature"](signals)[0]
    assert feature.tolist() == [[1, 2, 1, 0], [2, 1, 8, 5], [0, 1, 2, 1], [5, 10, 1, 4]]
    spatial = terms["spatial"](signals)[0, 0]
    assert torch.allclose(spatial, torch.tensor([0, 0.393469, 0.393469, 0.632121]), atol=1e-6)
    assert torch.allclose(terms["centre"](signals), torch.full((1, 4), 0.707107), atol=1e-6)
    total = combine(spec.stages[0].problem.cost, signals, pairwise=True)
    assert total is not None
    assert torch.allclose(total[0, 0], torch.tensor([0.107071, 0.600540, 0.500540, 0.639192]), atol=1e-6)
    assert torch.allclose(total[0, 1], torch.tensor([0.600540, 0.107071, 1.439192, 0.900540]), atol=1e-6)
    problem = transport_problem(spec.stages[0].problem, signals)
    assert torch.allclose(problem.a[0], torch.tensor([0.134876, 0.269752, 0.190744, 0.404628]), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("topv/printed", [0.134876, 0.269752, 0.190744, 0.404628]),
        ("topv/target_last", [0.135000, 0.270618, 0.190602, 0.403780]),
        ("topv/one_sided", [0.301346, 0.192717, 0.323049, 0.182888]),
    ],
)
def test_importance_of_the_card(name: str, expected: list[float]) -> None:
    assert torch.allclose(
        importance(with_epsilon(name), card_signals())[0], torch.tensor(expected), atol=2e-6
    )


def test_exact_value_of_the_card() -> None:
    solution = select(with_epsilon("topv/dual"), card_signals()).solution
    assert solution is not None
    assert float(solution.value[0]) == pytest.approx(0.318047, abs=1e-6)
    assert float(solution.gap[0]) == pytest.approx(0, abs=1e-9)


def test_the_printed_readout_is_blind_and_says_so() -> None:
    signals = random_signals()
    printed = load_spec("topv/printed")
    with pytest.warns(CostBlindReadoutWarning):
        base = select(printed, signals)
    assert base.diagnostics and "marginal" in base.diagnostics[0]
    norms = signals["hidden_in"].norm(dim=2)
    assert torch.allclose(base.importance, norms / norms.sum(1, keepdim=True), atol=1e-6)
    for change in ("problem.cost.feature.weight=5", "problem.cost.centre.weight=3", "solver.epsilon=0.4"):
        other = select(load_spec(printed, [change]), signals)
        assert torch.equal(other.keep, base.keep), change


def test_the_other_presets_do_look_at_the_cost() -> None:
    signals = random_signals()
    with warnings.catch_warnings():
        warnings.simplefilter("error", CostBlindReadoutWarning)
        for name in ("topv/one_sided", "topv/dual"):
            base = importance(load_spec(name), signals)
            for change in ("problem.cost.feature.weight=5", "problem.cost.centre.weight=1"):
                assert not torch.allclose(importance(load_spec(name, [change]), signals), base, atol=1e-4)


def test_a_cost_per_target_changes_no_preset() -> None:
    signals = random_signals()
    for name in PRESETS:
        spec = load_spec(name, ["steps=[]"])
        problem = transport_problem(spec.stages[0].problem, signals)
        shift = torch.randn(2, 1, signals.tokens, generator=torch.Generator().manual_seed(5))
        stage = spec.stages[0]
        solve, read = stage.solver.solve, stage.readout
        moved = type(problem).build(problem.cost + shift, a=problem.a, b=problem.b)
        before, after = read(problem, solve(problem)), read(moved, solve(moved))
        assert torch.allclose(before, after, atol=1e-4), name


def test_permuting_tokens_with_their_places_permutes_the_importance() -> None:
    signals = random_signals()
    order = torch.randperm(signals.tokens, generator=torch.Generator().manual_seed(2))
    moved = Signals({name: signals[name][:, order] for name in signals})
    for name in PRESETS:
        spec = load_spec(name, ["steps=[]"])
        # Exact duals are unique only up to degeneracy; their order is compared, not their digits.
        tolerance = 1e-4 if name == "topv/dual" else 1e-6
        assert torch.allclose(importance(spec, moved), importance(spec, signals)[:, order], atol=tolerance), (
            name
        )


@pytest.mark.parametrize("name", PRESETS)
def test_counts_add_what_is_recovered(name: str) -> None:
    signals = random_signals()
    chosen = select(load_spec(name, ["budget.keep=0.5"]), signals)
    assert chosen.known_counts == (12 + 3, 12 + 3)
    assert all((index.diff() > 0).all() for index in chosen.indices)


def test_every_tile_is_its_own_problem_on_any_grid() -> None:
    left, right = random_signals(6, 4, seed=1), random_signals(6, 4, seed=2)
    both = Signals({n: torch.cat([left[n], right[n]], 1) for n in left})
    groups = torch.tensor([0] * 24 + [1] * 24).expand(2, -1)
    for name in PRESETS:
        spec = load_spec(name)
        joint = select(spec, both, groups=groups)
        apart = [select(spec, part) for part in (left, right)]
        assert torch.equal(joint.keep, torch.cat([part.keep for part in apart], 1)), name


def test_topv_needs_no_attention_and_four_signals() -> None:
    for name in PRESETS:
        spec = load_spec(name)
        assert spec.attention is Attention.NONE
        assert spec.needs == {"hidden_in", "post_attention_norm", "xy", "grid"}


def test_half_precision_input_keeps_the_same_tokens_as_float64() -> None:
    signals = random_signals(12, 8)
    halved = {n: signals[n].half() if signals[n].is_floating_point() else signals[n] for n in signals}
    exact = {n: t.double() if t.is_floating_point() else t for n, t in halved.items()}
    pruner = Pruner(load_spec("topv").stages[0])
    assert torch.equal(pruner.select(Signals(halved)).keep, pruner.select(Signals(exact)).keep)


def test_samples_do_not_depend_on_their_batch_mates() -> None:
    signals = random_signals()
    for name, i in itertools.product(PRESETS, range(2)):
        spec = load_spec(name)
        alone = select(spec, Signals({n: signals[n][i : i + 1] for n in signals}))
        assert torch.equal(select(spec, signals).keep[i], alone.keep[0]), name
