"""The old name of `mix_research.jobs`, for one release more."""
import warnings

from .jobs import *

warnings.warn("mix_research.workers is mix_research.jobs now", DeprecationWarning, stacklevel=2)
