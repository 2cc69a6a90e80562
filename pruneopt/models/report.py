"""What a pruned prompt cost and saved: tokens, cache bytes, FLOPs, seconds, certificates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pruneopt.problems.allotment import Allotment
from pruneopt.problems.selection import Selection
from pruneopt.problems.solution import Solution, SubsetSolution, TransportSolution
from pruneopt.signals import Attention

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from pruneopt.models.base import ModelAdapter
    from pruneopt.models.outcome import Outcome

FORMULA = (
    "per layer 2nd(q + kv) + 2n^2 q + 3ndm multiply-adds; n tokens, width d, q and kv head widths, MLP m"
)


@dataclass(frozen=True)
class Shape:
    """Sizes of a language model that decide cost: `queries` = heads x head width, `keys` likewise."""

    layers: int
    width: int
    queries: int
    keys: int
    mlp: int
    bytes: int

    def flops(self, tokens: int) -> float:
        """Multiply-adds of one decoder layer on `tokens` tokens of one sample.

        `2nd(q + kv) + 2n^2 q + 3ndm`, which is the field's `4nd^2 + 2n^2 d + 3ndm` without grouped heads.
        """
        n, d = tokens, self.width
        return 2.0 * n * d * (self.queries + self.keys) + 2.0 * n * n * self.queries + 3.0 * n * d * self.mlp

    def cache_bytes(self, columns: int) -> int:
        """Keys and values of `columns` columns in one layer."""
        return 2 * columns * self.keys * self.bytes


def shape_of(adapter: ModelAdapter) -> Shape:
    attention, norm = adapter.layers[0].self_attn, adapter.layers[0].input_layernorm
    config = adapter.text_config
    heads = config.num_key_value_heads * attention.head_dim
    return Shape(
        len(adapter.layers),
        config.hidden_size,
        config.num_attention_heads * attention.head_dim,
        heads,
        config.intermediate_size,
        norm.weight.element_size(),  # norms keep the dtype of activations where other weights are quantised
    )


@dataclass(frozen=True)
class Report:
    """Numbers of one prompt.

    `tokens[layer][sample]` counts the real tokens that ran, `columns[layer]` what the batch holds afterwards,
    padding included.  `cuts`: the layer from which on tokens are gone, and how many are left per sample with
    a picture.  `evicted`: the same for layers whose caches alone lost tokens.  Cache bytes are for the whole
    batch: `cache_expected` from the closed form, `cache_found` from the tensors (None without a cache).
    Shares are pruned over dense.
    """

    method: str
    spec_hash: str
    family: str
    shape: Shape
    batch: int
    prompt_tokens: list[int]
    visual_tokens: list[int]
    cuts: list[tuple[int, list[int]]]
    tokens: list[list[int]]
    columns: list[int]
    cache_found: list[int] | None
    seconds: dict[str, float]
    selections: Sequence[Selection]
    notes: list[str] = field(default_factory=list)
    visual_by_sample: list[int] = field(default_factory=list)
    dense_columns: int = 0
    evicted: list[tuple[list[int], list[int]]] = field(default_factory=list)

    @property
    def kept_at_entry(self) -> float:
        """Share of visual tokens that the first decoder layer sees."""
        entry = [n for layer, n in self.cuts if layer == 0]
        return sum(entry[-1]) / sum(self.visual_tokens) if entry else 1.0

    @property
    def kept_at_end(self) -> float:
        """Share of visual tokens that the last decoder layer sees."""
        return sum(self.cuts[-1][1]) / sum(self.visual_tokens) if self.cuts else 1.0

    @property
    def layer_mean_tokens(self) -> list[float]:
        """Mean over decoder layers of the visual tokens, per sample with a picture."""
        text = [n - visual for n, visual in zip(self.prompt_tokens, self.visual_by_sample, strict=True)]
        return [
            sum(row[b] - text[b] for row in self.tokens) / len(self.tokens)
            for b in range(self.batch)
            if self.visual_by_sample[b]
        ]

    @cached_property
    def flops_dense(self) -> float:
        return self.shape.layers * sum(self.shape.flops(n) for n in self.prompt_tokens)

    @cached_property
    def flops_pruned(self) -> float:
        return sum(self.shape.flops(n) for row in self.tokens for n in row)

    @property
    def flops_share(self) -> float:
        return self.flops_pruned / self.flops_dense

    @property
    def cache_expected(self) -> list[int]:
        return [self.batch * self.shape.cache_bytes(n) for n in self.columns]

    @property
    def cache_dense(self) -> int:
        """Closed form of the unpruned batch, padding included."""
        return self.shape.layers * self.batch * self.shape.cache_bytes(self.dense_columns)

    @property
    def cache_share(self) -> float:
        found = self.cache_found if self.cache_found is not None else self.cache_expected
        return sum(found) / self.cache_dense

    @cached_property
    def certificates(self) -> list[dict[str, Any]]:
        """Per stage: status, value and bound of the solution, per problem, in units of its problem."""
        return [_certificate(s.solution) for s in self.selections]

    @cached_property
    def evidence(self) -> list[dict[str, dict[str, Any]]]:
        """Per stage the same of every other problem solved on the way, by the key of what asked for it."""
        return [
            {key: _certificate(found) for key, found in s.evidence.items() if found is not s.solution}
            for s in self.selections
        ]

    @property
    def diagnostics(self) -> list[str]:
        found = [*self.notes, *(note for s in self.selections for note in s.diagnostics)]
        return list(dict.fromkeys(found))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for JSON."""
        return {
            "method": self.method,
            "spec_hash": self.spec_hash,
            "family": self.family,
            "batch": self.batch,
            "prompt_tokens": self.prompt_tokens,
            "visual_tokens": self.visual_tokens,
            "cuts": [{"layer": layer, "kept": kept} for layer, kept in self.cuts],
            "evicted": [{"layers": layers, "kept": kept} for layers, kept in self.evicted],
            "tokens_per_layer": self.tokens,
            "columns_per_layer": self.columns,
            "kept_at_entry": self.kept_at_entry,
            "kept_at_end": self.kept_at_end,
            "layer_mean_tokens": self.layer_mean_tokens,
            "flops_formula": FORMULA,
            "flops_dense": self.flops_dense,
            "flops_pruned": self.flops_pruned,
            "flops_share": self.flops_share,
            "kv_bytes_dense": self.cache_dense,
            "kv_bytes_expected": self.cache_expected,
            "kv_bytes_found": self.cache_found,
            "kv_share": self.cache_share,
            "seconds": self.seconds,
            "certificates": self.certificates,
            "evidence": self.evidence,
            "diagnostics": self.diagnostics,
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table
        from rich.text import Text

        table = Table("", "dense", "pruned", "share", title=f"{self.method} on {self.family}")
        mean = sum(self.layer_mean_tokens) / len(self.layer_mean_tokens)
        visual = sum(self.visual_tokens) / len(self.visual_tokens)
        end = self.kept_at_end * visual
        found = sum(self.cache_found if self.cache_found is not None else self.cache_expected)
        table.add_row("visual tokens at the end", f"{visual:g}", f"{end:g}", f"{self.kept_at_end:.1%}")
        table.add_row("visual tokens, layer mean", f"{visual:g}", f"{mean:.1f}", f"{mean / visual:.1%}")
        table.add_row(
            "prefill multiply-adds",
            f"{self.flops_dense / 1e9:.3f} G",
            f"{self.flops_pruned / 1e9:.3f} G",
            f"{self.flops_share:.1%}",
        )
        table.add_row("KV cache", mebibytes(self.cache_dense), mebibytes(found), f"{self.cache_share:.1%}")
        yield table
        cuts = [f"before layer {layer}: {kept} kept" for layer, kept in self.cuts]
        cuts += [f"in the cache of {layers}: {kept} kept" for layers, kept in self.evicted]
        yield Text(f"visual tokens per sample {self.visual_tokens}; {', '.join(cuts)}")
        spent = ", ".join(f"{name} {1000 * s:.2f} ms" for name, s in self.seconds.items())
        yield Text(f"selection took {1000 * sum(self.seconds.values()):.2f} ms: {spent}")
        for number, item in enumerate(self.certificates):
            yield Text(f"stage {number}: {item['text']}")
            for key, other in self.evidence[number].items():
                yield Text(f"stage {number}, {key}: {other['text']}")
        for note in self.diagnostics:
            yield Text(f"note: {note}")

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        out = StringIO()
        Console(file=out, width=120, color_system=None).print(self)
        return out.getvalue().rstrip()


def mebibytes(count: float) -> str:
    """Bytes in MiB, the one unit of memory in everything that is printed."""
    return f"{count / 2**20:.3f} MiB"


def _certificate(solution: Solution | None) -> dict[str, Any]:
    if solution is None:
        return {"text": "no solver"}
    status = sorted({s.name for s in getattr(solution, "status", ())})
    item: dict[str, Any] = {"solver": getattr(solution, "solver", ""), "status": status}
    value = _numbers(getattr(solution, "value", None))
    if isinstance(solution, TransportSolution):
        bound = _numbers(solution.lower_bound)
        errors = {"row_error": _numbers(solution.row_error), "col_error": _numbers(solution.col_error)}
    elif isinstance(solution, SubsetSolution):
        bound, errors = _numbers(solution.upper_bound), {}
    elif isinstance(solution, Allotment):
        bound, errors = _numbers(solution.upper_bound), {"price": _numbers(solution.price)}
        item["counts"] = list(solution.counts)
    else:
        return {**item, "text": item["solver"]}
    gap = _numbers(solution.gap)
    item |= {"value": value, "bound": bound, "gap": gap, **errors}
    words = f"{item['solver']} {'/'.join(status).lower()}, value {_few(value)}, bound {_few(bound)}"
    if "counts" in item:
        words = f"counts {item['counts']} at price {_few(item['price'])}, {words}"
    return {**item, "text": f"{words}, gap {_few(gap)}"}


def _numbers(values: Any) -> list[float] | None:
    return None if values is None else [float(v) for v in values.tolist()]


def _few(values: list[float] | None) -> str:
    if values is None:
        return "none"
    shown = ", ".join(f"{v:.4g}" for v in values[:3])
    return f"[{shown}{', ...' if len(values) > 3 else ''}]"


def measure(adapter: ModelAdapter, outcome: Outcome, *, cache: Any) -> Report:
    """The report of a finished prefill; `cache` is what it filled, or None."""
    prompt, layers = outcome.prompt, len(adapter.layers)
    tokens, columns = [list(prompt.lengths)] * layers, [prompt.columns] * layers
    for cut in outcome.cuts:
        for layer in range(cut.layer, layers) if cut.evicted is None else cut.evicted:
            columns[layer] = cut.width
            if cut.evicted is None:
                tokens[layer] = list(cut.lengths)
    found = None
    if cache is not None:
        found = [_layer_bytes(layer) for layer in cache.layers[:layers]]
    by_sample = [0] * prompt.batch
    for row, n in zip(prompt.rows, prompt.started, strict=True):
        by_sample[row] = n
    notes = list(outcome.notes)
    if outcome.spec.attention is Attention.FULL:
        notes.append("this method reads full attention maps; they were recomputed beside the model's kernel")
    reads_cls = any(name.partition("@")[0] == "cls_attention" for name in outcome.spec.needs)
    if reads_cls and not adapter.encoder().cls:
        notes.append(
            "this vision encoder has no CLS token: cls_attention was answered by the mean attention that a "
            "patch receives (received_attention)"
        )
    return Report(
        outcome.spec.name,
        outcome.spec.hash,
        adapter.family,
        shape_of(adapter),
        prompt.batch,
        list(prompt.lengths),
        list(prompt.started),
        [(cut.layer, cut.visual) for cut in outcome.cuts if cut.evicted is None],
        tokens,
        columns,
        found,
        dict(outcome.seconds),
        [cut.selection for cut in outcome.cuts],
        notes,
        visual_by_sample=by_sample,
        dense_columns=prompt.columns,
        evicted=[(list(cut.evicted), cut.visual) for cut in outcome.cuts if cut.evicted is not None],
    )


def _layer_bytes(layer: Any) -> int:
    """Bytes that one cache layer holds."""
    return sum(t.numel() * t.element_size() for t in (layer.keys, layer.values) if t is not None)
