"""What a spec asks of a model, checked before anything runs."""

from __future__ import annotations

from pruneopt.errors import ModelError
from pruneopt.signals import Place, signal_info
from pruneopt.spec.schema import Spec


def plan_captures(spec: Spec) -> tuple[dict[int, set[str]], set[tuple[str, int | None]]]:
    """Which signals to capture in which decoder layer and from the encoder.

    Raises ModelError for signals that do not exist where they are asked for.
    """
    plan: dict[int, set[str]] = {}
    encoder: set[tuple[str, int | None]] = set()
    for number, stage in enumerate(spec.stages):
        cut = stage.insertion.layer_index
        for name in sorted(stage.needs):
            base, _, at = name.partition("@")
            if base not in stage.insertion.provides:
                raise ModelError(
                    f"signal {name!r} does not exist at {stage.insertion.name} (stage {number}); choose "
                    "another insertion point"
                )
            layer, info = int(at) if at else None, signal_info(base)
            if info.place in (Place.ENCODER, Place.CROP):
                encoder.add((base, layer))
            elif info.place is Place.DECODER:
                layer = cut - 1 if layer is None else layer
                if not 0 <= layer < cut:
                    raise ModelError(
                        f"signal {name!r} is read before layer {cut} but layer {layer} has not run"
                    )
                plan.setdefault(layer, set()).add(base)
            elif at:
                raise ModelError(f"signal {name!r} is of no layer; write {base!r}")
    return plan, encoder
