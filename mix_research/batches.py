"""The old name of `mix_research.loaders` and `mix_research.dataset`, for one release more."""
import warnings

from .dataset import *
from .loaders import *

warnings.warn("mix_research.batches is mix_research.loaders and mix_research.dataset now", DeprecationWarning, stacklevel=2)
