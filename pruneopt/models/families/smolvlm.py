"""SmolVLM: the layout of Idefics3 under a model type of its own."""

from pruneopt.models.families.idefics3 import Idefics3Adapter

__all__ = ["Idefics3Adapter"]
