"""Problems that stand in place of balanced transport, each with a value and a bound of its own."""

from pruneopt.problems.relaxed._relaxation import Relaxation

__all__ = ["Relaxation"]
