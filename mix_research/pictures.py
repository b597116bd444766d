"""The old name of `mix_research.figures`, for one release more."""
import warnings

from .figures import *

warnings.warn("mix_research.pictures is mix_research.figures now", DeprecationWarning, stacklevel=2)
