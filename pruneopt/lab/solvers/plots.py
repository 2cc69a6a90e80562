"""Pictures of a solver benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pruneopt.lab.grid import Row
from pruneopt.lab.solvers.rows import exponents, focus

_SHOWN = (
    "sinkhorn eps=0.05 100r", "sinkhorn eps=0.001 anneal", "one_sided eps=0.05", "proximal 100", "emd",
    "assignment", "lp HiGHS", "pot_sinkhorn_log", "pot_emd",
)  # fmt: skip
_FLOOR = 1e-9


def draw(out: Path, *, cells: list[Row], readouts: list[Row]) -> None:
    """`pareto.png`, `gap_epsilon.png`, `scaling.png` and `readouts.png`: what there is data for."""
    import matplotlib

    if not cells or not readouts:
        return
    matplotlib.use("Agg")
    _pareto(out / "pareto.png", cells)
    _gap_epsilon(out / "gap_epsilon.png", cells)
    _scaling(out / "scaling.png", cells)
    _readouts(out / "readouts.png", readouts)


def _panels(count: int, *, width: float = 5.0, height: float = 3.8) -> Any:
    import matplotlib.pyplot as plt

    columns = min(count, 3)
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, list(axes.flat[:count])


def _legend(axis: Any, size: int) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=size, loc="center left", bbox_to_anchor=(1, 0.5))


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _pareto(path: Path, cells: list[Row]) -> None:
    """Excess over the optimum against time per problem; the line joins solvers that nothing beats in both."""

    families = list(dict.fromkeys(c["family"] for c in cells))
    figure, axes = _panels(len(families))
    for axis, family in zip(axes, families, strict=True):
        rows = focus(cells, family)
        points = sorted((c["seconds_total"] / c["batch"] * 1e3, max(c["excess"], _FLOOR), c) for c in rows
                        if c["excess"] == c["excess"])  # fmt: skip
        front, best = [], float("inf")
        for ms, excess, c in sorted(points, key=lambda p: p[:2]):
            axis.plot(ms, excess, "s" if c["peer"] else "o", color="tab:orange" if c["peer"] else "tab:blue")
            if excess < best:
                best = excess
                front.append((ms, excess))
                axis.annotate(
                    c["solver"], (ms, excess), fontsize=6, xytext=(3, 3), textcoords="offset points"
                )
        axis.plot(*zip(*front, strict=True), color="0.6", linewidth=1, zorder=0)
        axis.set(xscale="log", yscale="log", title=f"{family}, N={rows[0]['tokens']}, B={rows[0]['batch']}",
                 xlabel="ms per problem, cost included", ylabel="excess / cost range")  # fmt: skip
    figure.suptitle("accuracy against time (circles: pruneopt, squares: peers)")
    _save(figure, path)


def _gap_epsilon(path: Path, cells: list[Row]) -> None:
    """True excess and certified gap of Sinkhorn as epsilon falls."""

    swept = [c for c in cells if c["solver"].startswith("sinkhorn eps")]
    families = list(dict.fromkeys(c["family"] for c in swept))
    if not families:
        return
    figure, axes = _panels(len(families))
    for axis, family in zip(axes, families, strict=True):
        for how, colour in (("100r", "tab:blue"), ("anneal", "tab:green")):
            rows = [c for c in focus(swept, family) if c["solver"].endswith(how)]
            rows.sort(key=lambda c: c["epsilon"])
            eps = [c["epsilon"] for c in rows]
            axis.plot(
                eps, [max(c["excess"], _FLOOR) for c in rows], "o-", color=colour, label=f"excess, {how}"
            )
            axis.plot(eps, [max(c["gap"], _FLOOR) for c in rows], "^--", color=colour, label=f"gap, {how}")
        axis.set(
            xscale="log", yscale="log", title=family, xlabel="epsilon / cost range", ylabel="share of range"
        )
        _legend(axis, 7)
    _save(figure, path)


def _scaling(path: Path, cells: list[Row]) -> None:
    fits = exponents(cells)
    families = [x for x in ("topv", "cloud64") if any(c["family"] == x for c in cells)]
    families = families or list(dict.fromkeys(c["family"] for c in cells))[:2]
    figure, axes = _panels(len(families), width=6.0, height=4.5)
    for axis, family in zip(axes, families, strict=True):
        for solver in _SHOWN:
            rows = [c for c in cells if c["family"] == family and c["solver"] == solver]
            batch = max((c["batch"] for c in rows), default=0)
            points = sorted((c["tokens"], c["seconds_p50"] / batch) for c in rows if c["batch"] == batch)
            fit = next((f for f in fits if (f["family"], f["solver"]) == (family, solver)), None)
            label = solver if fit is None else f"{solver}: N^{fit['exponent']:.2f}"
            if points:
                axis.plot(*zip(*points, strict=True), "o-", label=label, markersize=3)
        axis.set(xscale="log", yscale="log", title=family, xlabel="N", ylabel="seconds per problem")
        _legend(axis, 7)
    _save(figure, path)


def _readouts(path: Path, readouts: list[Row]) -> None:
    """Spearman with the same readout of the optimum, as epsilon falls, beside the trivial predictors."""

    readouts = [r for r in readouts if r["solver"].startswith("sinkhorn eps") and "tol" not in r["solver"]]
    if not readouts:
        return
    families = [x for x in ("topv", "embedded", "cloud64") if any(r["family"] == x for r in readouts)]
    if not families:
        families = list(dict.fromkeys(r["family"] for r in readouts))[:3]
    figure, axes = _panels(len(families), width=6.0, height=4.2)
    for axis, family in zip(axes, families, strict=True):
        rows = [r for r in focus(readouts, family) if r["spearman"] is not None]
        solvers = sorted({r["solver"] for r in rows}, key=_epsilon, reverse=True)
        for name in dict.fromkeys(r["readout"] for r in rows):
            against = name if any(r["against"] == name == r["readout"] for r in rows) else "dual_source"
            mine = {
                r["solver"]: r["spearman"] for r in rows if (r["readout"], r["against"]) == (name, against)
            }
            trivial = name in ("token_norm", "uniform", "centre_distance")
            axis.plot([solvers.index(s) for s in mine], list(mine.values()), ":" if trivial else "o-",
                      label=name + ("" if against == name else " (vs dual)"), markersize=3)  # fmt: skip
        axis.set_xticks(range(len(solvers)), [s.removeprefix("sinkhorn ") for s in solvers], rotation=40,
                        fontsize=7, ha="right")  # fmt: skip
        axis.set(title=family, ylabel="Spearman with the exact optimum")
        _legend(axis, 6)
    _save(figure, path)


def _epsilon(solver: str) -> tuple[float, str]:
    return float(solver.split("eps=")[1].split()[0]), solver
