"""Networks of others as scores. Nothing of another library is imported before it is asked for."""

from .networks import Adapted, from_azula, from_betas, from_denoiser, from_velocity, readings, require_reading
from .pipelines import from_diffusers

__all__ = [
    "Adapted", "from_azula", "from_betas", "from_denoiser", "from_diffusers", "from_velocity", "readings",
    "require_reading",
]  # fmt: skip
