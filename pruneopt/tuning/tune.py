"""Outer tuner: black-box search over parameters of a spec, under a budget that is solved for.

VFlowOpt finds its thresholds, cells and ratios this way, by how well a pruned model keeps the hidden state
that predicts the next token.  Nothing here knows that method: any numeric override of any spec can be tuned.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pruneopt.errors import InputError, PruneoptError, SpecError
from pruneopt.spec.load import load_spec
from pruneopt.spec.schema import Spec
from pruneopt.tuning.schedule import cut_layers

Objective = Callable[[Spec], float]
Complete = Callable[[Spec], list[str]]


@dataclass(frozen=True)
class Tuning:
    """Outcome of a search.

    Parameters
    ----------
    spec
        The best one.
    overrides
        What makes it of the method.
    value
        Its objective.
    trials
        Every point that was tried with its value, in order; -inf where it was infeasible.
    """

    spec: Spec
    overrides: tuple[str, ...]
    value: float
    trials: tuple[tuple[dict[str, float], float], ...]


def tune(
    method: str | Spec,
    space: Mapping[str, tuple[float, float]],
    *,
    objective: Objective,
    calls: int = 50,
    initial: int | None = None,
    seed: int = 42,
    complete: Complete | None = None,
) -> Tuning:
    """Maximise an objective over parameters of a spec.

    Source: VFlowOpt section 3.4 (Bayesian optimisation, 50 calls; its code makes 300).  Needs scikit-learn.

    Parameters
    ----------
    method
        What is tuned: a name, a path or a spec.
    space
        Override keys to `(low, high)`.
    objective
        `objective(spec)`, larger is better; NaN or infinite values make a trial infeasible.
    calls
        Evaluations in all.
    initial
        How many of them are Sobol points, half when None; the rest maximise the expected improvement of a
        Gaussian process (Matern 5/2).
    seed
        Of both.
    complete
        Overrides that follow from the others, such as a last ratio that meets a budget (see
        `meet_layer_mean`); a refusal there makes a trial infeasible.

    Returns
    -------
    Tuning
        The best trial, of equal ones the first, and all others.

    Raises
    ------
    InputError
        When no trial was feasible.
    SpecError
        For an empty or upside-down space.
    """
    if not space or any(not low < high for low, high in space.values()):
        raise SpecError("the space needs at least one key, each with low < high")
    # The first points are Sobol's, spread evenly; from then on a model of what was seen proposes.
    names = list(space)
    low, high = (np.array([space[n][i] for n in names]) for i in (0, 1))
    first = min(calls, max(2, calls // 2 if initial is None else initial))
    points = _sobol(len(names), first, seed=seed)
    seen: list[np.ndarray] = []
    values: list[float] = []
    generator = np.random.default_rng(seed)
    for number in range(calls):
        unit = (
            points[number] if number < first else _propose(seen, values, dims=len(names), generator=generator)
        )
        point = low + unit * (high - low)
        seen.append(unit)
        values.append(_try(method, names, point=point, objective=objective, complete=complete)[0])
    # The best trial is made once more, for its spec; ties go to the first.
    best = int(np.argmax(values))
    if not math.isfinite(values[best]):
        raise InputError("no trial was feasible; widen the space or loosen the budget")
    point = low + seen[best] * (high - low)
    _, spec, overrides = _try(method, names, point=point, objective=None, complete=complete)
    trials = tuple(
        (dict(zip(names, (low + u * (high - low)).tolist(), strict=True)), v)
        for u, v in zip(seen, values, strict=True)
    )
    assert spec is not None
    return Tuning(spec, tuple(overrides), values[best], trials)


def _try(
    method: str | Spec,
    names: Sequence[str],
    *,
    point: np.ndarray,
    objective: Objective | None,
    complete: Complete | None,
) -> tuple[float, Spec | None, list[str]]:
    overrides = [f"{name}={value:.6g}" for name, value in zip(names, point.tolist(), strict=True)]
    try:
        spec = load_spec(method, overrides)
        if complete is not None:
            overrides += complete(spec)
            spec = load_spec(method, overrides)
        value = 0.0 if objective is None else float(objective(spec))
    except PruneoptError:
        return -math.inf, None, overrides
    return (value if math.isfinite(value) else -math.inf), spec, overrides


def _sobol(dims: int, count: int, *, seed: int) -> np.ndarray:
    from scipy.stats import qmc

    power = max(0, math.ceil(math.log2(max(count, 1))))
    return np.asarray(qmc.Sobol(dims, seed=seed).random_base2(power))[:count]


def _propose(
    seen: list[np.ndarray], values: list[float], *, dims: int, generator: np.random.Generator
) -> np.ndarray:
    """The candidate of largest expected improvement; infeasible trials count as the worst value seen."""
    from scipy.stats import norm

    try:
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
    except ImportError as error:
        raise InputError("tuning needs scikit-learn: pip install 'pruneopt[learn]'") from error
    y = np.array(values)
    good = y[np.isfinite(y)]
    if not len(good):
        return generator.random(dims)
    # Infeasible trials teach the model where not to look, without a jump that it could not follow.
    y = np.where(np.isfinite(y), y, good.min())
    scale = y.std() or 1.0
    bounds = (0.05, 10.0)
    kernel = ConstantKernel(1.0, "fixed") * Matern([0.5] * dims, bounds, nu=2.5) + WhiteKernel(1e-4, "fixed")
    model = GaussianProcessRegressor(kernel, normalize_y=False, random_state=0, n_restarts_optimizer=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # length scales at their bounds are common with few trials
        model.fit(np.stack(seen), (y - y.mean()) / scale)
    # Where the model is sure the gain is flat: a third of the candidates is drawn around the best so far.
    near = seen[int(np.argmax(y))] + 0.05 * generator.standard_normal((256, dims))
    candidates = np.concatenate([generator.random((512, dims)), near.clip(0, 1)])
    mean, deviation = model.predict(candidates, return_std=True)
    ahead = mean - (y.max() - y.mean()) / scale
    z = ahead / np.maximum(deviation, 1e-9)
    gain = ahead * norm.cdf(z) + deviation * norm.pdf(z)
    return np.asarray(candidates[int(np.argmax(gain))])


def meet_layer_mean(share: float, layers: int) -> Complete:
    """Set the last cut's ratio so that visual tokens, averaged over layers, are a given share.

    A spec with the cuts before layers l1 < l2 < ... keeps 1 before l1; ratios may be of the start or of
    what is left.

    Parameters
    ----------
    share
        The mean over layers of the visual tokens that are left, over those of the prompt.
    layers
        Decoder layers of the model.

    Returns
    -------
    callable
        For `complete` of `tune`; raises SpecError where no ratio from 0 to 1 does it.
    """

    def complete(spec: Spec) -> list[str]:
        cuts = cut_layers(spec)
        alive, total, before = 1.0, 0.0, 0
        for stage, cut in zip(spec.stages[:-1], cuts[:-1], strict=True):
            total += alive * (cut - before)
            keep = float(stage.budget.keep)
            alive, before = (keep * alive if stage.budget.relative_to == "current" else keep), cut
        total += alive * (cuts[-1] - before)
        left = layers - cuts[-1]
        wanted = (share * layers - total) / left if left > 0 else math.nan
        last = spec.stages[-1].budget
        ratio = wanted / alive if last.relative_to == "current" else wanted
        if not 0 < ratio <= 1 or wanted > alive:
            raise SpecError(
                f"no ratio of the last cut gives a layer mean of {share:g}; it would be {ratio:g}"
            )
        key = "budget.keep" if len(spec.stages) == 1 else f"stages.{len(spec.stages) - 1}.budget.keep"
        return [f"{key}={ratio:.9g}"]

    return complete


def final_state_cosine(model: Any, batches: Sequence[Mapping[str, Any]]) -> Objective:
    """Mean cosine of the pruned and the dense hidden state that predicts the next token.

    Source: VFlowOpt section 3.4.

    Parameters
    ----------
    model
        A supported model.
    batches
        Model inputs, padded on the left.

    Returns
    -------
    callable
        For `objective` of `tune`.
    """
    import torch

    from pruneopt.models.apply import prune

    def last(inputs: Mapping[str, Any]) -> torch.Tensor:
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states[-1]
        return states[:, -1].float()

    dense = [last(inputs) for inputs in batches]

    def objective(spec: Spec) -> float:
        cosines = []
        for inputs, wanted in zip(batches, dense, strict=True):
            with prune(model, spec):
                cosines.append(torch.nn.functional.cosine_similarity(last(inputs), wanted, dim=1))
        return float(torch.cat(cosines).mean())

    return objective
