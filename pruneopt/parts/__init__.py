"""Parts: what a spec can name."""

from pruneopt.parts._part import *  # noqa: F403
from pruneopt.parts._part import __all__ as __all__
