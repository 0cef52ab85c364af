"""Training a score model by denoising score matching, and a classifier of noisy samples by the same loop.

Step k draws its batch, times and noise from a generator seeded by (seed, k) alone, for the whole batch, and so are the
global generators seeded that a network may draw from, as dropout does: a training that was interrupted and resumed is
the same training, and so is one spread over several processes, each of which takes its rows of the batch
(`torchrun --nproc-per-node 2 ...`), to the rounding of sums, if its network draws nothing.
"""

from .averages import averaged
from .loop import train
from .recipes import RECIPES, Recipe, usual_encoder, usual_net, usual_settings
from .settings import Settings

__all__ = ["RECIPES", "Recipe", "Settings", "averaged", "train", "usual_encoder", "usual_net", "usual_settings"]
