"""Networks of others as scores, and our samplers in the loops of others. Nothing of another library is imported before
it is asked for.
"""

from .networks import Adapted, from_azula, from_betas, from_denoiser, from_velocity, readings, require_reading
from .pipelines import from_diffusers
from .samplers import Scheduler, k_sampler

__all__ = [
    "Adapted", "Scheduler", "from_azula", "from_betas", "from_denoiser", "from_diffusers", "from_velocity", "k_sampler",
    "readings", "require_reading",
]  # fmt: skip
