"""Forward and reverse processes: SDEs by their marginals, discrete chains on a grid, paths of any SDE."""

from .between import Between
from .chain import Chain, TabulatedVE, cosine_betas, geometric_sigmas, linear_betas, scaled_linear_betas
from .linear import EDM, VE, VP, Cosine, RectifiedFlow, SubVP, Tabulated
from .sde import (
    SDE,
    LinearSDE,
    Reverse,
    Score,
    derivative,
    needs_noise,
    require_linear,
    require_reverse,
    require_score_of,
)

__all__ = [
    "EDM", "SDE", "VE", "VP", "Between", "Chain", "Cosine", "LinearSDE", "RectifiedFlow", "Reverse", "Score", "SubVP",
    "Tabulated", "TabulatedVE", "cosine_betas", "derivative", "geometric_sigmas", "linear_betas", "needs_noise",
    "require_linear", "require_reverse", "require_score_of", "scaled_linear_betas",
]  # fmt: skip
