"""What guidance samples, beside what it is said to sample.

    python examples/what_guidance_samples.py

Guidance follows s + w (s_c - s), the score of p_t(x)^(1-w) p_t(x | c)^w at every noise level, and is said to draw from
p(x) p(c | x)^w. But products of densities do not diffuse as one density does: the samples are of another law. On a line
the tilted law is known by a sum; `guide.tilted` draws from it, by weights, and says how wrong it may be.
"""

import torch
from torch import Tensor

from scoresde import VP, Ancestral, exact, grid, iid, sample
from scoresde.guide import combined, tilted

LAW = exact.GaussianMixture(torch.tensor([0.6, 0.4]), torch.tensor([[-0.8], [0.9]]), torch.tensor([0.15, 0.3]))
PART = exact.GaussianMixture(torch.ones(1), torch.tensor([[0.9]]), torch.tensor([0.3]))
SDE, TS, N = VP(), grid.log_snr(VP(), 200), 4000


def truth(w: float) -> tuple[float, float]:
    """Mean and deviation of p(x)^(1-w) p(x | c)^w."""
    y = torch.linspace(-6, 8, 20_001, dtype=torch.float64)[:, None]
    end = float(TS[-1])
    log = (1 - w) * LAW.marginal(SDE, end).log_prob(y) + w * PART.marginal(SDE, end).log_prob(y)
    return moments(y[:, 0], log.softmax(0))


def moments(x: Tensor, share: Tensor) -> tuple[float, float]:
    """Those of values that have a share each."""
    mean = float((share * x).sum())
    return mean, float((share * (x - mean) ** 2).sum().sqrt())


def main() -> None:
    """A line for each w: the tilted law, guidance, weights."""
    s, c = LAW.diffuse(SDE), PART.diffuse(SDE)
    print("  w   p(x) p(c|x)^w     guidance          weighted                    independent samples in effect")
    for w in (0.5, 1.0, 1.5, 2.0, 3.0):
        x_T = SDE.prior((N, 1), iid(torch.Generator().manual_seed(0)), torch.float64)
        p = SDE.reverse(combined((1 - w, s), (w, c)))
        x = sample(p, x_T, TS, Ancestral(1.0), noise=iid(torch.Generator().manual_seed(1)))
        found = tilted(
            SDE, s, c, w, x_T, TS, Ancestral(1.0),
            noise=iid(torch.Generator().manual_seed(1)), generator=torch.Generator().manual_seed(2),
        )  # fmt: skip
        (m, d), (own_m, own_d) = truth(w), moments(x[:, 0], torch.full((N,), 1 / N))
        weighted_m, weighted_d = moments(found.x[:, 0], found.log_w.softmax(0))
        error, effective = float(found.error()), found.effective
        print(
            f"{w:4.1f}  {m:6.3f} +- {d:.3f}  {own_m:6.3f} +- {own_d:.3f}  "
            f"{weighted_m:6.3f} +- {weighted_d:.3f}, error {error:.3f}  {effective:6.0f} of {N}"
        )


if __name__ == "__main__":
    main()
