"""What is known of a sample, y = A x + noise, and samples given that: one file a method, each with its source, and the
exact posterior where the law is known.
"""

from .bayes import importance, log_evidence, posterior
from .daps import DAPS
from .ddrm import DDRM
from .dps import DPS
from .maps import Average, Blur, Function, Grey, Linear, Map, Mask, Matrix, Measurement
from .measure import Observation
from .moments import mmps
from .monte_carlo import mcgdiff
from .null_space import ddnm
from .particles import Particles
from .pseudo import pigdm
from .replacement import Replacement
from .restoration import diffpir
from .twist import twisted

__all__ = [
    "DAPS", "DDRM", "DPS", "Average", "Blur", "Function", "Grey", "Linear", "Map", "Mask", "Matrix", "Measurement",
    "Observation", "Particles", "Replacement", "ddnm", "diffpir", "importance", "log_evidence", "mcgdiff", "mmps",
    "pigdm", "posterior", "twisted",
]  # fmt: skip
