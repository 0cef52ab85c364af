"""How far samples are from data, and from a law.

The Frechet distance is that between the Gaussians with the features' means and covariances (Dowson & Landau 1982;
Heusel et al. 2017). A distance in the features of one classifier says nothing beside that of another: always give the
value that real data get beside it. These are not Inception features, so it is not an FID.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..exact import GaussianMixture
from ..noise import seeded
from ..shapes import count, lifted, shown, state

Values = Callable[[Tensor], Tensor]
PART = 16_384
"""Stored samples that are numbers at a time."""
EXACT = "donot_use_mm_for_euclid_dist"  # |x|^2 + |y|^2 - 2xy cancels where it matters


def frechet(a: Tensor, b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^(1/2) C_b C_a^(1/2))^(1/2)) of features a (n, d) and b (m, d), in float64.

    With any roots C = R^T R the trace is the least |R_a^T P - R_b^T Q|^2 over orthogonal P and Q, which those of the
    singular value decomposition R_a R_b^T = P S Q^T attain (Bhatia, Jain & Lim 2019, theorem 1): a sum of squares,
    never below 0. R is the triangular factor of the centred features, so that no covariance is squared or rooted.

    Raises ValueError unless both have at least 2 rows and the same d.
    """
    for name, x in (("a", a), ("b", b)):
        if _samples(name, x).ndim != 2 or len(x) < 2 or x.shape[1] != a.shape[1]:
            raise ValueError(f"{name} must be (n, {a.shape[1]}) with n > 1, got {tuple(x.shape)}")
    (m_a, R_a), (m_b, R_b) = ((x.mean(0), _root(x - x.mean(0))) for x in (a.double(), b.double()))
    rows = max(len(R_a), len(R_b))
    R_a, R_b = (F.pad(R, (0, 0, 0, rows - len(R))) for R in (R_a, R_b))
    P, _, Q = torch.linalg.svd(R_a @ R_b.T)
    return float((m_a - m_b).square().sum() + (R_a.T @ P - R_b.T @ Q.T).square().sum())


def frechet_bias(covariance: Tensor, n: int, m: int) -> float:
    """The mean of `frechet` between n and m samples of one Gaussian, to first order in 1/n and 1/m,

        (1/n + 1/m) (sum_i 5/4 l_i + sum_ij l_i l_j / (2 (l_i + l_j))),

    with l the eigenvalues of its covariance (d, d): a law has this distance from itself. Differences E of covariances
    are sum_ij E_ij^2 / (2 (l_i + l_j)) apart (Bhatia, Jain & Lim 2019, section 4), and those of samples have variance
    l_i l_j (1 + [i = j]) (1/n + 1/m). It says little unless n and m are well above d.

    Raises ValueError unless covariance is a symmetric matrix without negative eigenvalues, and n and m are from 2 on.
    """
    for name, number in (("n", n), ("m", m)):
        count(name, number, least=2)
    C = state("covariance", covariance).double()
    if C.ndim != 2 or C.shape[0] != C.shape[1] or not torch.allclose(C, C.T):
        raise ValueError(f"covariance must be a symmetric matrix, got shape {tuple(C.shape)}")
    eigen = torch.linalg.eigvalsh(C)
    if eigen[0] < -1e-9 * eigen[-1].abs():
        raise ValueError(f"covariance must have no negative eigenvalue, got {float(eigen[0]):g}")
    low = eigen.clamp_min(0)
    both = low[:, None] + low
    pairs = torch.where(both > 0, low[:, None] * low / (2 * both), torch.zeros_like(both))
    return float((5 / 4 * low.sum() + pairs.sum()) * (1 / n + 1 / m))


def _root(x: Tensor) -> Tensor:
    """R, (min(n, d), d), with R^T R the covariance of centred rows x (n, d)."""
    return torch.linalg.qr(x, mode="r")[1] / (len(x) - 1) ** 0.5


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 256, seed: int = 0) -> float:
    """(mean over directions v of W_2(v.a, v.b)^2)^(1/2) of samples a (n, *D) and b (m, *D), in the units of the data
    (Bonneel et al. 2015). The directions are uniform on the sphere, and the same for the same seed.

    On the line W_2^2 is the integral of the squared difference of the quantile functions, here the exact one of two
    step functions. Raises ValueError if a and b have not one D.
    """
    a, b = paired(a, b)
    count("seed", seed, least=0)
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
    a, b = paired(a, b)

    def mean(x: Tensor, y: Tensor) -> Tensor:
        sums = [torch.cdist(part, y, compute_mode=EXACT).sum() for part in x.split(1024)]
        return torch.stack(sums).sum() / (len(x) * len(y))

    return float((2 * mean(a, b) - mean(a, a) - mean(b, b)).clamp_min(0).sqrt())


def _samples(name: str, x: Tensor) -> Tensor:
    """Samples whose squares are numbers."""
    if state(name, x).abs().max() > 1e100:
        raise ValueError(f"{name} must hold numbers of at most 1e100, got {float(x.abs().max()):g}")
    return x


def paired(a: Tensor, b: Tensor, names: tuple[str, str] = ("a", "b")) -> tuple[Tensor, Tensor]:
    """Both as rows in float64."""
    if _samples(names[0], a).shape[1:] != _samples(names[1], b).shape[1:]:
        raise ValueError(f"{names[1]} must hold samples of shape {tuple(a.shape[1:])}, got {tuple(b.shape[1:])}")
    return a.flatten(1).double(), b.flatten(1).double()


def weights_error(law: GaussianMixture, x: Tensor) -> float:
    """The total variation between the weights of the mixture and the mean responsibilities of its components for the
    samples x (B, *D): 0 if every mode is found as often as it should be, at most 1. Raises ValueError unless law is a
    mixture of that shape.
    """
    if not isinstance(law, GaussianMixture):
        raise ValueError(f"law must be a GaussianMixture, got {law!r}")
    return float((law.responsibilities(_samples("x", x)).mean(0) - law.weights).abs().sum() / 2)


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
    def fit(
        cls,
        x: Tensor,
        y: Tensor | None,
        seed: int = 0,
        epochs: int = 8,
        batch: int = 64,
        values: Values = lambda x: x,
    ) -> "Classifier":
        """Trained by cross-entropy on images x (n, C, H, W) with labels y (n,); the same seed gives the same one.
        values: makes numbers of a batch of x, where images are stored otherwise. Raises ValueError unless x are images
        with one label each, a whole number from 0.
        """
        if x.ndim != 4:
            raise ValueError(f"x must be images (n, C, H, W), got shape {tuple(x.shape)}")
        like = state("x", values(x[:1]))
        if y is None or y.shape != x.shape[:1]:
            raise ValueError(f"y must hold {len(x)} labels, got {y if y is None else tuple(y.shape)}")
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.min() < 0:
            raise ValueError(f"y must hold whole numbers from 0, got {y.dtype}: {y.tolist()[:3]}, ...")
        count("epochs", epochs), count("batch", batch)
        g = torch.Generator().manual_seed(seed)
        with seeded(seed), torch.enable_grad():
            net = cls(x.shape[1], int(y.max()) + 1).to(like.device)
            optimizer = torch.optim.Adam(net.parameters(), 2e-3)
            for _ in range(epochs):
                for rows in torch.randperm(len(x), generator=g).split(batch):
                    optimizer.zero_grad()
                    F.cross_entropy(net(values(x[rows])), y[rows].long().to(like.device)).backward()
                    optimizer.step()
        raw = torch.cat([net.features(values(part)) for part in x.split(512)])
        net.mean, net.std = raw.mean(0), raw.std(0)
        return net.eval().requires_grad_(False)


def nearest(x: Tensor, data: Tensor, values: Values = lambda x: x) -> tuple[Tensor, Tensor]:
    """The root mean square distance per dimension of each x (B, *D) to its nearest neighbour in data (n, *D), and its
    index, the first of several; exactly 0 for a copy. It is computed in float64, for `PART` samples at a time, which
    `values` makes numbers of, where data are stored otherwise. Raises ValueError if they have not one D.
    """
    state("x", x)
    if not isinstance(data, Tensor) or data.ndim < 1 or not len(data):
        raise ValueError(f"data must hold samples like x, (n, *{tuple(x.shape[1:])}), got {shown(data)}")
    least, index = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device), 0
    where = torch.zeros(len(x), dtype=torch.long, device=x.device)
    for part in data.split(PART):
        rows, every = paired(x, values(part), ("x", "data"))
        found = [torch.cdist(some, every, compute_mode=EXACT).min(1) for some in rows.split(1024)]
        d, i = (torch.cat(each) for each in zip(*found, strict=True))
        nearer = d < least
        least, where = torch.where(nearer, d, least), torch.where(nearer, index + i, where)
        index += len(part)
    return (least / x[0].numel() ** 0.5).to(lifted(x).dtype), where
