"""Every method on the embedded model, cut depths fitted to it: what is promised is what is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pruneopt.errors import ModelError
from pruneopt.models.apply import prune
from pruneopt.parts.insertions.prefill_layer import PrefillLayer
from pruneopt.parts.scores.pagerank import PageRank
from pruneopt.parts.scores.transition import Transition
from pruneopt.spec.load import list_methods, load_spec
from pruneopt.spec.schema import Spec

ELSEWHERE = {
    "aim/llava": "block 23",
    "saint/encoder": "block 19",
    "saint/encoder_release": "block 19",
    "saint/hybrid": "block 19",
    "cdpruner/clip": "clip_features",
    "cdpruner/release": "clip_features",
}  # what a 6-layer tower without a text half must refuse, by a word of the reason


@pytest.fixture(scope="module")
def embedded():
    from pruneopt.demo.assets import load_inputs, load_model, samples

    model, processor = load_model()
    return model, load_inputs(samples()[:1], processor), model.config.text_config.num_hidden_layers


def fitted(spec: Spec, layers: int) -> Spec:
    """The same cuts, no deeper than the model."""
    stages = []
    for stage in spec.stages:
        if stage.insertion.layer_index:
            stage = replace(stage, insertion=PrefillLayer(min(stage.insertion.layer_index, layers - 1)))
        scores = tuple(
            replace(s, part=replace(s.part, layers=(0,))) if isinstance(s.part, Transition) else s
            for s in stage.problem.scores
        )
        stages.append(replace(stage, problem=replace(stage.problem, scores=scores)))
    return replace(spec, stages=tuple(stages))


@pytest.mark.parametrize(
    "method", [m for m in list_methods() if not m.startswith("codebook") and m != "divprune/exact"]
)
def test_a_method_runs_on_the_embedded_model(method: str, embedded) -> None:
    model, inputs, layers = embedded
    spec = fitted(load_spec(method), layers)
    if method in ELSEWHERE:
        with pytest.raises(ModelError, match=ELSEWHERE[method]), prune(model, spec):
            model(**inputs)
    else:
        check_run(model, inputs, spec)


def check_run(model, inputs, spec: Spec) -> None:
    with torch.no_grad(), prune(model, spec) as run:
        logits = model(**inputs).logits
    assert bool(logits[:, -1].isfinite().all())
    selections = run.selections
    assert len(selections) == len(spec.stages)
    for stage, selection in zip(spec.stages, selections, strict=True):
        assert selection.known_counts == tuple(selection.keep.sum(1).tolist())
        if stage.rule is None and not stage.steps:
            solution = selection.solution
            wanted = tuple(solution.problem.k.tolist())
            assert selection.known_counts == wanted


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_walk_along_attention_does_not_depend_on_padding(side: str, embedded) -> None:
    from pruneopt.demo.assets import load_inputs, load_processor, samples
    from pruneopt.lab.record_signals import record_signals

    model, processor = embedded[0], load_processor()
    short, long = samples()[0], replace(samples()[0], question=samples()[0].question + " Or what is it?" * 3)
    processor.tokenizer.padding_side = side
    both = load_inputs([short, long], processor)
    alone = load_inputs([short], processor)
    assert both["attention_mask"][0].sum() == alone["attention_mask"].sum() < both["attention_mask"].shape[1]
    for part in (PageRank(tau=1.0), PageRank(tau=0.5, rounds=2, damping=0.3)):
        seen = [
            part(record_signals(model, x, names=part.needs, insertion="prefill_layer")) for x in (both, alone)
        ]
        torch.testing.assert_close(seen[0][:1], seen[1], atol=1e-7, rtol=1e-4)
