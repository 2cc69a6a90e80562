"""What insertion points do inside a forward pass. One file per site; `docs/insertion-points.md` says how."""

from __future__ import annotations

from pruneopt.models.base import ModelAdapter
from pruneopt.models.sites._site import Site
from pruneopt.registry import registry
from pruneopt.spec.schema import Spec


def sites_of(adapter: ModelAdapter, spec: Spec) -> list[Site]:
    """The sites that the insertions of a spec name, in the order in which a pass comes to them.

    Raises
    ------
    RegistryError
        For a site that nobody registered.
    ModelError
        For a stage that cannot be carried out on this model.
    """
    names = dict.fromkeys(stage.insertion.site for stage in spec.stages)
    return [registry("sites").get(name)(adapter, spec) for name in names]


__all__ = ["Site", "sites_of"]
