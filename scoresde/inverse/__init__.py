"""What is known of a sample, y = A x + noise, and samples given that: one file a method, each with its source, and the
exact posterior where the law is known.
"""

from .bayes import log_evidence, posterior
from .dps import DPS
from .measure import Average, Grey, Linear, Map, Mask, Matrix, Observation
from .moments import mmps
from .null_space import ddnm
from .particles import Particles, twisted
from .pseudo import pigdm
from .replacement import Replacement
from .restoration import diffpir

__all__ = [
    "DPS", "Average", "Grey", "Linear", "Map", "Mask", "Matrix", "Observation", "Particles", "Replacement", "ddnm",
    "diffpir", "log_evidence", "mmps", "pigdm", "posterior", "twisted",
]  # fmt: skip
