"""Kinds of subset problem: what a kind is, and one file each."""

from pruneopt.problems.kinds._kind import GROUPS, Kind, KindsOffering, all_kinds, find_kind

__all__ = ["GROUPS", "Kind", "KindsOffering", "all_kinds", "find_kind"]
