"""How far samples are from data, and from a law.

The Frechet distance is that between the Gaussians with the features' means and covariances (Dowson & Landau 1982;
Heusel et al. 2017). A distance in the features of one classifier says nothing beside that of another: always give the
value that real data get beside it. These are not Inception features, so it is not an FID.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..exact import GaussianMixture
from ..noise import seeded
from ..shapes import count, state

EXACT = "donot_use_mm_for_euclid_dist"  # |x|^2 + |y|^2 - 2xy cancels where it matters


def frechet(a: Tensor, b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^(1/2) C_b C_a^(1/2))^(1/2)) of features a (n, d) and b (m, d), in float64.

    Raises ValueError unless both have at least 2 rows and the same d.
    """
    for name, x in (("a", a), ("b", b)):
        if state(name, x).ndim != 2 or len(x) < 2 or x.shape[1] != a.shape[1]:
            raise ValueError(f"{name} must be (n, {a.shape[1]}) with n > 1, got {tuple(x.shape)}")
    (m_a, C_a), (m_b, C_b) = ((x.mean(0), torch.cov(x.T).view(len(x.T), -1)) for x in (a.double(), b.double()))
    values, vectors = torch.linalg.eigh(C_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ C_b @ root).clamp_min(0).sqrt().sum()
    return float((m_a - m_b).square().sum() + C_a.trace() + C_b.trace() - 2 * cross)


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 256, seed: int = 0) -> float:
    """(mean over directions v of W_2(v.a, v.b)^2)^(1/2) of samples a (n, *D) and b (m, *D), in the units of the data
    (Bonneel et al. 2015). The directions are uniform on the sphere, and the same for the same seed.

    On the line W_2^2 is the integral of the squared difference of the quantile functions, here the exact one of two
    step functions. Raises ValueError if a and b have not one D.
    """
    a, b = _pair(a, b)
    g = torch.Generator().manual_seed(seed)
    v = torch.randn(a.shape[1], count("directions", directions), generator=g, dtype=torch.float64).to(a.device)
    u, w = ((x @ (v / v.norm(dim=0))).sort(0).values for x in (a, b))
    n, m = len(u), len(w)
    q = torch.cat([torch.arange(1, k + 1, dtype=torch.float64) / k for k in (n, m)]).unique().to(a.device)
    width = torch.diff(q, prepend=q.new_zeros(1))
    middle = q - width / 2
    i, j = (middle * n).long().clamp_max(n - 1), (middle * m).long().clamp_max(m - 1)
    return float((width[:, None] * (u[i] - w[j]).square()).sum(0).mean().sqrt())


def energy_distance(a: Tensor, b: Tensor) -> float:
    """(2 E|X - Y| - E|X - X'| - E|Y - Y'|)^(1/2) between the empirical laws of a (n, *D) and b (m, *D), in the square
    root of the data's unit (Szekely & Rizzo 2013). Raises ValueError if a and b have not one D.
    """
    a, b = _pair(a, b)

    def mean(x: Tensor, y: Tensor) -> Tensor:
        sums = [torch.cdist(part, y, compute_mode=EXACT).sum() for part in x.split(1024)]
        return torch.stack(sums).sum() / (len(x) * len(y))

    return float((2 * mean(a, b) - mean(a, a) - mean(b, b)).clamp_min(0).sqrt())


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if state("a", a).shape[1:] != state("b", b).shape[1:]:
        raise ValueError(f"b must hold samples of shape {tuple(a.shape[1:])}, got {tuple(b.shape[1:])}")
    return a.flatten(1).double(), b.flatten(1).double()


def weights_error(law: GaussianMixture, x: Tensor) -> float:
    """The total variation between the weights of the mixture and the mean responsibilities of its components for the
    samples x (B, *D): 0 if every mode is found as often as it should be, at most 1.
    """
    return float((law.responsibilities(x).mean(0) - law.weights).abs().sum() / 2)


class Classifier(nn.Module):
    """A small convolutional classifier of images. Its last hidden layer of 64 units, scaled to mean 0 and variance 1
    over the images that it was fitted to, serves as features.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(count("channels", channels), 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(1024, 64),
            nn.SiLU(),
        )
        self.head = nn.Linear(64, count("classes", classes))
        self.register_buffer("mean", torch.zeros(64))
        self.register_buffer("std", torch.ones(64))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, classes)."""
        return self.head(self.body(x))

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer, scaled, (B, 64)."""
        return (torch.cat([self.body(part) for part in x.split(512)]) - self.mean) / self.std

    @torch.no_grad()
    def accuracy(self, x: Tensor, y: Tensor) -> float:
        """The share of images x that are given their labels y."""
        return float((torch.cat([self(part).argmax(1) for part in x.split(512)]) == y).double().mean())

    @classmethod
    def fit(cls, x: Tensor, y: Tensor | None, seed: int = 0, epochs: int = 8, batch: int = 64) -> "Classifier":
        """Trained by cross-entropy on images x (n, C, H, W) with labels y (n,); the same seed gives the same one.
        Raises ValueError if there is not one label an image.
        """
        if y is None or y.shape != x.shape[:1]:
            raise ValueError(f"y must hold {len(x)} labels, got {y if y is None else tuple(y.shape)}")
        g = torch.Generator().manual_seed(seed)
        with seeded(seed), torch.enable_grad():
            net = cls(x.shape[1], int(y.max()) + 1).to(x.device)
            optimizer = torch.optim.Adam(net.parameters(), 2e-3)
            for _ in range(epochs):
                for rows in torch.randperm(len(x), generator=g).split(batch):
                    optimizer.zero_grad()
                    F.cross_entropy(net(x[rows]), y[rows]).backward()
                    optimizer.step()
        raw = net.features(x)
        net.mean, net.std = raw.mean(0), raw.std(0)
        return net.eval().requires_grad_(False)


def nearest(x: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    """The root mean square distance per dimension of each x (B, *D) to its nearest neighbour in data (n, *D), and its
    index; exactly 0 for a copy. Raises ValueError if they have not one D.
    """
    if state("x", x).shape[1:] != state("data", data).shape[1:]:
        raise ValueError(f"data must hold samples of shape {tuple(x.shape[1:])}, got {tuple(data.shape[1:])}")
    d, i = torch.cdist(x.flatten(1), data.flatten(1), compute_mode=EXACT).min(1)
    return d / x[0].numel() ** 0.5, i
