"""The solvers as their papers write them: floats, expm1, small linear systems and numerical integrals, no weights of
ours. Every function takes a problem in the papers' letters, x at ts[0] and the decreasing times, and returns x at
ts[-1]; z are the draws of its intervals. Before them, what the laws of solvers share.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import quad_vec
from torch import Tensor

from scoresde import EDM, VE, VP, Cosine, LinearSDE, RectifiedFlow, SubVP, Tabulated, exact

F64 = torch.float64
MEAN, STD = torch.tensor([0.7, -0.4], dtype=F64), 0.6
MIDDLE, APART, VARIANCE = torch.tensor([0.2, 0.1], dtype=F64), torch.tensor([1.2, -0.6], dtype=F64), 0.2
MIXTURE = exact.GaussianMixture(
    torch.tensor([3, 2]), torch.stack([MIDDLE + APART, MIDDLE - APART]), torch.full((2,), VARIANCE, dtype=F64)
)
SDES = [VP(), SubVP(), VE(0.05, 20.0), Cosine(), RectifiedFlow(), EDM(T=30.0), Tabulated(torch.linspace(1e-3, 0.2, 50))]
LAMBDAS = (-2.5, -2.2, -1.4, -0.9, -0.1, 0.3, 1.2, 1.6)
SIZE = ((-2.2, 0.5), (-0.9, 2.0), (0.3, 1.5))


def normal(*shape, seed=7):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def times(sde, lams=LAMBDAS):
    """A grid of unequal steps."""
    return sde.time(torch.tensor(lams, dtype=F64))


def near(a, b, tol=1e-12):
    """Equal up to a part `tol` of the largest number."""
    assert a.shape == b.shape and float((a - b).abs().max()) <= tol * float(b.abs().max()), (
        f"off by {float((a - b).abs().max() / b.abs().max()):.1e}"
    )


def no_noise(x, t, s):
    raise AssertionError("noise was drawn")


class Tape:
    """z[0], z[1], ... in order."""

    def __init__(self, z):
        self.z = iter(z)

    def __call__(self, x, t, s):
        return next(self.z).to(x)


class Probe:
    """In draw k, row 1 + (1 + k) d + j of the batch is the unit vector e_j, and every other row is 0."""

    def __init__(self):
        self.draws = 0

    def __call__(self, x, t, s):
        z, d = torch.zeros_like(x), x.shape[1]
        first, self.draws = 1 + (1 + self.draws) * d, self.draws + 1
        z[first : first + d] = torch.eye(d, dtype=x.dtype)[: len(z[first : first + d])]
        return z


def probed(run, d=2):
    """(c, A, V) of an affine sampler x, z_1, z_2, ... -> c + A x + sum B_k z_k, V = sum B_k B_k^T; run(x, noise)."""
    dry = Probe()
    run(torch.zeros(1, d, dtype=F64), dry)
    x = torch.zeros(1 + (1 + dry.draws) * d, d, dtype=F64)
    x[1 : 1 + d] = torch.eye(d)
    y = run(x, Probe())
    A, *B = (y[1:] - y[0]).view(-1, d, d).mT
    return y[0], A, sum(b @ b.T for b in B) if B else 0 * A


@dataclass(frozen=True)
class mixture:
    """The score of MIXTURE in closed form, for speed."""

    sde: LinearSDE

    def __call__(self, x, t):
        alpha, apart = self.sde.alpha(t), APART.to(x)
        v = alpha**2 * VARIANCE + self.sde.var(t)
        off = x - alpha * MIDDLE.to(x)
        side = torch.tanh(off @ apart * (alpha / v) + math.log(3 / 2) / 2)
        return (alpha * side[:, None] * apart - off) / v

    def denoise(self, x, t):
        return (x + self.sde.var(t) * self(x, t)) / self.sde.alpha(t)


def gaussian(sde, std=STD, mean=MEAN):
    """The score of N(mean, std^2 I)."""
    return lambda x, t: -(x - sde.alpha(t) * mean) / (sde.alpha(t) ** 2 * std**2 + sde.var(t))


def point(sde):
    """The score of data at one point, MEAN."""
    return gaussian(sde, 0.0)


def smooth(x, t):
    """A score that is arithmetic alone, so that its bits do not depend on the batch."""
    return -(x + 0.3 * x.flip(1)) / (1 + 0.1 * x * x) / (1 + t.to(x.dtype))


@dataclass(frozen=True)
class Problem:
    """alpha_t, sigma_t, lambda_t = log(alpha_t/sigma_t), a noise prediction eps and a data prediction x_0."""

    sde: LinearSDE
    score: Callable[[Tensor, Tensor], Tensor]

    def alpha(self, t):
        return float(self.sde.alpha(t))

    def sigma(self, t):
        return float(self.sde.sigma(t))

    def lam(self, t):
        return math.log(self.alpha(t) / self.sigma(t))

    def time(self, lam):
        return self.sde.time(torch.tensor(lam, dtype=F64))

    def eps(self, x, t):
        return -self.sigma(t) * self.score(x, t)

    def x_0(self, x, t):
        return (x - self.sigma(t) * self.eps(x, t)) / self.alpha(t)


def integral(f, a, b):
    """int_a^b f, f a vector."""
    return quad_vec(f, a, b, epsabs=0, epsrel=1e-14)[0]


def lagrange(nodes, u):
    """The values at u of the polynomials that are 1 at one node and 0 at the others."""
    return np.array([math.prod((u - b) / (a - b) for b in nodes if b != a) for a in nodes])


def combine(weights, values):
    return sum(float(w) * v for w, v in zip(weights, values))


# one step


def ddim(p, x, ts, z, eta=0.0):
    """Song, Meng & Ermon 2021, eq. 12 and 16, for x/alpha and sigma/alpha in place of alpha-bar."""
    for t, s, noise in zip(ts, ts[1:], z):
        e, bar, to = p.eps(x, t), 1 / (1 + math.exp(-2 * p.lam(t))), 1 / (1 + math.exp(-2 * p.lam(s)))
        sigma = eta * math.sqrt((1 - to) / (1 - bar) * (1 - bar / to))
        v = x * math.sqrt(bar) / p.alpha(t)  # the state of a variance-preserving process with this alpha-bar
        v = math.sqrt(to) * (v - math.sqrt(1 - bar) * e) / math.sqrt(bar) + math.sqrt(1 - to - sigma**2) * e
        x = (v + sigma * noise) * p.alpha(s) / math.sqrt(to)
    return x


def dpm_solver_2(p, x, ts, z):
    """Lu et al. 2022a, Algorithm 1."""
    for t, s in zip(ts, ts[1:]):
        h = p.lam(s) - p.lam(t)
        m = p.time((p.lam(t) + p.lam(s)) / 2)
        u = p.alpha(m) / p.alpha(t) * x - p.sigma(m) * math.expm1(h / 2) * p.eps(x, t)
        x = p.alpha(s) / p.alpha(t) * x - p.sigma(s) * math.expm1(h) * p.eps(u, m)
    return x


def dpm_solver_3_step(p, x, t, s):
    """Lu et al. 2022a, Algorithm 2."""
    h, r_1, r_2 = p.lam(s) - p.lam(t), 1 / 3, 2 / 3
    s_1, s_2 = p.time(p.lam(t) + r_1 * h), p.time(p.lam(t) + r_2 * h)
    e = p.eps(x, t)
    u_1 = p.alpha(s_1) / p.alpha(t) * x - p.sigma(s_1) * math.expm1(r_1 * h) * e
    D_1 = p.eps(u_1, s_1) - e
    u_2 = p.alpha(s_2) / p.alpha(t) * x - p.sigma(s_2) * math.expm1(r_2 * h) * e
    u_2 = u_2 - p.sigma(s_2) * r_2 / r_1 * (math.expm1(r_2 * h) / (r_2 * h) - 1) * D_1
    D_2 = p.eps(u_2, s_2) - e
    x = p.alpha(s) / p.alpha(t) * x - p.sigma(s) * math.expm1(h) * e
    return x - p.sigma(s) / r_2 * (math.expm1(h) / h - 1) * D_2


def dpm_solver_3(p, x, ts, z):
    for t, s in zip(ts, ts[1:]):
        x = dpm_solver_3_step(p, x, t, s)
    return x


def dpm_solver_pp_2s(p, x, ts, z, r=0.5):
    """Lu et al. 2022b, Algorithm 1."""
    for t, s in zip(ts, ts[1:]):
        h = p.lam(s) - p.lam(t)
        m, x_0 = p.time(p.lam(t) + r * h), p.x_0(x, t)
        u = p.sigma(m) / p.sigma(t) * x - p.alpha(m) * math.expm1(-r * h) * x_0
        D = (1 - 1 / (2 * r)) * x_0 + 1 / (2 * r) * p.x_0(u, m)
        x = p.sigma(s) / p.sigma(t) * x - p.alpha(s) * math.expm1(-h) * D
    return x


def phi(k, z):
    """phi_k(z) = int_0^1 e^((1 - u) z) u^(k - 1)/(k - 1)! du, phi_0 = e^z."""
    if k == 0:
        return math.exp(z)
    return float(integral(lambda u: math.exp((1 - u) * z) * u ** (k - 1) / math.factorial(k - 1), 0, 1))


def res_2(p, x, ts, z, c_2=0.5):
    """Zhang et al. 2023, single-step RES of two stages: in y = x/sigma, dy/dlambda = y + alpha/sigma x_0, so that
    x~ = x/alpha has the linear part -1 and z = -h.
    """
    for t, s in zip(ts, ts[1:]):
        h = p.lam(s) - p.lam(t)
        m, y, D = p.time(p.lam(t) + c_2 * h), x / p.alpha(t), p.x_0(x, t)
        u = math.exp(-c_2 * h) * y + h * c_2 * phi(1, -c_2 * h) * D
        b_2 = phi(2, -h) / c_2
        y = math.exp(-h) * y + h * ((phi(1, -h) - b_2) * D + b_2 * p.x_0(p.alpha(m) * u, m))
        x = p.alpha(s) * y
    return x


def res_3(p, x, ts, z, c_2=0.5, c_3=1.0):
    """Hochbruck & Ostermann 2005, eq. 5.9: a_32 = gamma c_2 phi_2(c_2 z) + c_3^2/c_2 phi_2(c_3 z), b_2 = gamma b_3,
    b_3 = phi_2/(gamma c_2 + c_3), with 2 (gamma c_2 + c_3) = 3 (gamma c_2^2 + c_3^2), and row sums c_i phi_1(c_i z).
    """
    gamma = (3 * c_3**2 - 2 * c_3) / (2 * c_2 - 3 * c_2**2)
    for t, s in zip(ts, ts[1:]):
        h = p.lam(s) - p.lam(t)
        t_2, t_3 = p.time(p.lam(t) + c_2 * h), p.time(p.lam(t) + c_3 * h)
        y, D = x / p.alpha(t), p.x_0(x, t)
        u = math.exp(-c_2 * h) * y + h * c_2 * phi(1, -c_2 * h) * D
        D_2 = p.x_0(p.alpha(t_2) * u, t_2)
        a_32 = gamma * c_2 * phi(2, -c_2 * h) + c_3**2 / c_2 * phi(2, -c_3 * h)
        u = math.exp(-c_3 * h) * y + h * ((c_3 * phi(1, -c_3 * h) - a_32) * D + a_32 * D_2)
        D_3 = p.x_0(p.alpha(t_3) * u, t_3)
        b_3 = phi(2, -h) / (gamma * c_2 + c_3)
        y = math.exp(-h) * y + h * ((phi(1, -h) - (1 + gamma) * b_3) * D + gamma * b_3 * D_2 + b_3 * D_3)
        x = p.alpha(s) * y
    return x


def edm_heun(p, x, ts, z, churn=0.0, low=0.0, high=math.inf, noise=1.0):
    """Karras et al. 2022, Algorithm 2, line by line, on x/alpha at the noise levels t_i = sigma/alpha; no level is
    raised beyond that of T.
    """
    levels = [p.sigma(t) / p.alpha(t) for t in ts]
    N, top, y, draws = len(ts) - 1, p.sigma(p.sde.T) / p.alpha(p.sde.T), x / p.alpha(ts[0]), iter(z)

    def D(y, level):
        t = p.time(-math.log(level))
        return p.x_0(p.alpha(t) * y, t)

    for i in range(N):
        t, t_next = levels[i], levels[i + 1]
        gamma = min(churn / N, math.sqrt(2) - 1) if low <= t <= high else 0
        t_hat = min(t + gamma * t, top)
        if t_hat > t * (1 + 1e-9):
            y = y + math.sqrt(t_hat**2 - t**2) * noise * next(draws)
        d = (y - D(y, t_hat)) / t_hat
        y_next = y + (t_next - t_hat) * d
        if t_next != 0:
            d_next = (y_next - D(y_next, t_next)) / t_next
            y_next = y + (t_next - t_hat) * (d / 2 + d_next / 2)
        y = y_next
    return p.alpha(ts[-1]) * y


# several


def dpm_solver_pp_2m(p, x, ts, z):
    """Lu et al. 2022b, Algorithm 2, whose first step is of first order."""
    known, h_before = [], None
    for t, s in zip(ts, ts[1:]):
        known, h = [p.x_0(x, t), *known], p.lam(s) - p.lam(t)
        D = known[0]
        if h_before:
            r = h_before / h
            D = (1 + 1 / (2 * r)) * known[0] - 1 / (2 * r) * known[1]
        x, h_before = p.sigma(s) / p.sigma(t) * x - p.alpha(s) * math.expm1(-h) * D, h
    return x


def dpm_solver_pp_3m(p, x, ts, z, halved):
    """The third-order update of the authors' code (`multistep_dpm_solver_third_update`), whose D_2, the second divided
    difference, is half of the second derivative that phi_3 goes with: `halved`, or with the whole of it. Before it the
    first- and the second-order one; unless halved, the first interval is redone with the mean of the predictions at its
    ends once the second is known.
    """
    known, hs, x_first = [], [], x
    for i, (t, s) in enumerate(zip(ts, ts[1:])):
        h = p.lam(s) - p.lam(t)
        known = [p.x_0(x, t), *known]
        if i == 1 and not halved:
            x = p.sigma(t) / p.sigma(ts[0]) * x_first - p.alpha(t) * math.expm1(-hs[0]) * (known[0] + known[1]) / 2
        phi_1 = math.expm1(-h)
        phi_2 = phi_1 / h + 1
        phi_3 = phi_2 / h - 0.5
        x_next = p.sigma(s) / p.sigma(t) * x - p.alpha(s) * phi_1 * known[0]
        if i == 1:
            x_next = x_next - p.alpha(s) * phi_1 / 2 * (known[0] - known[1]) * h / hs[0]
        if i > 1:
            r_0, r_1 = hs[0] / h, hs[1] / h
            D1_0, D1_1 = (known[0] - known[1]) / r_0, (known[1] - known[2]) / r_1
            D1, D2 = D1_0 + r_0 / (r_0 + r_1) * (D1_0 - D1_1), (D1_0 - D1_1) / (r_0 + r_1)
            x_next = x_next + p.alpha(s) * phi_2 * D1 - p.alpha(s) * phi_3 * (1 if halved else 2) * D2
        x, hs = x_next, [h, *hs]
    return x


def sde_dpm_solver_pp(p, x, ts, z, order):
    """SDE-DPM-Solver++(1) and (2M), Lu et al. 2022b, appendix."""
    known, h_before = [], None
    for t, s, noise in zip(ts, ts[1:], z):
        known, h = [p.x_0(x, t), *known], p.lam(s) - p.lam(t)
        x = p.sigma(s) / p.sigma(t) * math.exp(-h) * x - p.alpha(s) * math.expm1(-2 * h) * known[0]
        if h_before and order == 2:
            D1 = (known[0] - known[1]) * h / h_before
            x = x - p.alpha(s) * math.expm1(-2 * h) / 2 * D1
        x, h_before = x + p.sigma(s) * math.sqrt(-math.expm1(-2 * h)) * noise, h
    return x


def unipc_coefficients(h, r, B):
    """The a of Zhao et al. 2023, theorem 3.1 and appendix A (data prediction): R_p(h) a B(h) = phi(h) with B(h) and
    phi(h) of -h, R_p = [r_m^(k - 1) h^(k - 1)] and phi_k = h^k k! phi_(k + 1)(h); a_1 = 1/2 if there is one.
    """
    if len(r) == 1:
        return [0.5]
    k = range(1, len(r) + 1)
    R = np.array([[(r_m * h) ** (n - 1) for r_m in r] for n in k])
    right = np.array([h**n * math.factorial(n) * phi(n + 1, -h) for n in k]) / B
    return np.linalg.solve(R, right)


def unipc(p, x, ts, z, order, bh1=False):
    """Zhao et al. 2023, Algorithms 1 and 2 with data prediction: UniP, then UniC on the network's answer at what UniP
    predicted; the last step is not corrected. The order of the step rises from 1. B(h) = e^h - 1, or h if bh1.
    """
    known, lams = [], [p.lam(t) for t in ts]
    known.append(p.x_0(x, ts[0]))
    for i in range(1, len(ts)):
        now, h = min(order, i), lams[i] - lams[i - 1]
        base = p.sigma(ts[i]) / p.sigma(ts[i - 1]) * x - p.alpha(ts[i]) * math.expm1(-h) * known[0]
        r = [(lams[i - 1 - m] - lams[i - 1]) / h for m in range(1, now)]
        D = [(known[m] - known[0]) / r[m - 1] for m in range(1, now)]
        b = h if bh1 else -math.expm1(-h)
        B = p.alpha(ts[i]) * b
        x_next = base + B * combine(unipc_coefficients(h, r, b), D) if r else base
        if i == len(ts) - 1:
            return x_next
        new = p.x_0(x_next, ts[i])
        a = unipc_coefficients(h, [*r, 1.0], b)
        x, known = base + B * combine(a, [*D, new - known[0]]), [new, *known]
    return x


def deis(p, x, ts, z, order, rising=False):
    """tAB-DEIS, Zhang & Chen 2023, eq. 14 and 15: x_s = Psi(s, t) x + sum_j C_j eps_j, C_j = int g^2/2 Psi(s, u)/sigma
    l_j(u) du with Lagrange's polynomials in t and Psi(s, u) = alpha_s/alpha_u. The start: see `warmed`.
    """

    def step(x, i, nodes, known):
        t, s = float(ts[i]), float(ts[i + 1])

        def inside(u):
            return float(p.sde.g2(torch.tensor(u, dtype=F64))) / 2 / p.alpha(u) / p.sigma(u) * lagrange(nodes, u)

        return p.alpha(s) / p.alpha(t) * x + p.alpha(s) * combine(integral(inside, t, s), known)

    return warmed(p, x, ts, order, [float(t) for t in ts], step, rising)


def ipndm(p, x, ts, z, order):
    """The same with polynomials in sigma/alpha, which is what iPNDM does on equal steps of it."""
    levels = [p.sigma(t) / p.alpha(t) for t in ts]

    def step(x, i, nodes, known):
        weights = []
        for j, a in enumerate(nodes):
            poly = np.poly1d(1.0)
            for b in nodes[:j] + nodes[j + 1 :]:
                poly *= np.poly1d([1 / (a - b), -b / (a - b)])
            whole = poly.integ()
            weights.append(whole(levels[i + 1]) - whole(levels[i]))
        return p.alpha(ts[i + 1]) * (x / p.alpha(ts[i]) + combine(weights, known))

    return warmed(p, x, ts, order, levels, step)


def warmed(p, x, ts, order, us, step, rising=False):
    """An Adams method on eps with the start-up of `multistep`: for order 3 the first interval is redone with two nodes
    once the second is known; for order 4 it is a step of DPM-Solver-3, and the second is redone with three; not on
    grids of no more intervals than nodes, nor where the orders are just rising.
    """
    known, before = [], x
    start = len(ts) - 1 > order > 2 and not rising
    for i in range(len(ts) - 1):
        known = [p.eps(x, ts[i]), *known]
        if start and i == order - 2:
            x = step(before, i - 1, us[i::-1], known)
        before = x
        k = min(order, i + 1)
        if start and order == 4 and i == 0:
            x = dpm_solver_3_step(p, x, ts[0], ts[1])
        else:
            x = step(x, i, us[i::-1][:k], known[:k])
    return x


def ipndm_published(p, x, ts, z, order):
    """Zhang & Chen 2023, Algorithm 3: the weights of Adams and Bashforth for equal steps, then DDIM."""
    rules = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    known = []
    for t, s in zip(ts, ts[1:]):
        known = [p.eps(x, t), *known]
        e = combine(rules[min(len(known), order) - 1], known)
        x = p.alpha(s) * (x - p.sigma(t) * e) / p.alpha(t) + p.sigma(s) * e
    return x


def sa_solver(p, x, ts, z, tau, predictor, corrector):
    """Xue et al. 2023, Algorithm 1 with constant tau: b_j = e^(-lambda_s tau^2) sigma_s int e^(lambda (1 + tau^2))
    (1 + tau^2) l_j dlambda, noise sigma_s sqrt(1 - e^(-2 tau^2 h)), the same xi in predictor and corrector.
    """
    lams, known, e = [p.lam(t) for t in ts], [p.x_0(x, ts[0])], 1 + tau**2
    for i in range(len(ts) - 1):
        s, h = ts[i + 1], lams[i + 1] - lams[i]
        base = p.sigma(s) / p.sigma(ts[i]) * math.exp(-(tau**2) * h) * x
        base = base + p.sigma(s) * math.sqrt(-math.expm1(-2 * tau**2 * h)) * z[i]

        def weights(nodes, i=i, s=s):
            b = integral(lambda u: math.exp(e * u - tau**2 * lams[i + 1]) * lagrange(nodes, u), lams[i], lams[i + 1])
            return p.sigma(s) * e * b

        x_p = base + combine(weights(lams[i::-1][:predictor]), known)
        if i == len(ts) - 2 or not corrector:
            x, known = x_p, [p.x_0(x_p, s), *known]
            continue
        known = [p.x_0(x_p, s), *known]
        x = base + combine(weights(lams[i + 1 :: -1][:corrector]), known)
    return x


def size_of(table, lam):
    """A table of sizes, linear in the logarithm."""
    if not table:
        return 1.0
    return math.exp(np.interp(lam, [at for at, _ in table], [math.log(size) for _, size in table]))


def around_gaussian(p, x, ts, z, predictor, corrector, eta=0.0, m=0.0, c=0.0, size=(), analytic=False, taper=False):
    """Predict, evaluate, correct around N(m, c^2 I), with the state and the noise of the interval kept for its
    correction. In x~ = x/alpha, S^2 = c^2 + sigma~^2, e = 1 + eta^2, R = D - m - c^2/S^2 (x~ - m), q = R S/sigma~/size:

        x~_1 = m + (S_1/S_0)^e (x~_0 - m) + e int (S_1/S)^e sigma~/S size P dlambda + noise,

    P through the last `predictor` q, then through `corrector` with that at the end. Without a corrector, on the flow,
    the start of `warmed`. taper: in the last intervals as many nodes less, for both, as bring the last to one.
    """
    lams, e, n = [p.lam(t) for t in ts], 1 + eta**2, len(ts) - 1

    def S(lam):
        return math.hypot(c, math.exp(-lam))

    def q(x, t):
        y, lam = x / p.alpha(t), p.lam(t)
        R = p.x_0(x, t) - m - c**2 / S(lam) ** 2 * (y - m)
        return R * S(lam) * math.exp(lam) / size_of(size, lam)

    def step(y, i, nodes, known, noise):
        top = S(lams[i + 1])

        def inside(u):
            return e * (top / S(u)) ** e * math.exp(-u) / S(u) * size_of(size, u) * lagrange(nodes, u)

        cuts = [lams[i], *(at for at, _ in size if lams[i] < at < lams[i + 1]), lams[i + 1]]
        weights = sum(integral(inside, a, b) for a, b in zip(cuts, cuts[1:]))
        std = top * math.sqrt(1 - (top / S(lams[i])) ** (2 * eta**2))
        return m + (top / S(lams[i])) ** e * (y - m) + combine(weights, known) + std * noise

    known, y, lowered = [], x / p.alpha(ts[0]), 0
    start, before = not corrector and not eta and n > predictor, y
    for i in range(n):
        known = [0 * x if analytic and i == 0 else q(x, ts[i]), *known]
        if i > 0 and (corrector or (start and predictor > 2 and i == predictor - 2)):
            k = i + 1 if not corrector else max(2, min(i + 1, corrector - lowered))
            y = step(before, i - 1, lams[i::-1][:k], known, z[i - 1])
        before, k = y, min(predictor, i + 1, n - i if taper else predictor)
        lowered = min(predictor, i + 1) - k
        if start and predictor == 4 and i == 0:
            y = three_stages(y, lams, S, q, p, m, size)
        else:
            y = step(y, i, lams[i::-1][:k], known[:k], z[i])
        x = p.alpha(ts[i + 1]) * y
    return x


def three_stages(y, lams, S, q, p, m, size):
    """In v = (x~ - m)/S, dv/dlambda = q g/S with g = size sigma~/S: stages at 0, 1/3 and 2/3, each with the line
    through the first q and that before, integrated.
    """
    low, h = lams[0], lams[1] - lams[0]
    v, rate = (y - m) / S(low), lambda u: size_of(size, u) * math.exp(-u) / S(u) ** 2
    stages = [q(p.alpha(p.time(low)) * y, p.time(low))]
    for part, at in ((1 / 3, None), (2 / 3, 1 / 3), (1.0, 2 / 3)):
        top = low + part * h
        constant = integral(rate, low, top)
        u = v + constant * stages[0]
        if at:
            line = integral(lambda u, at=at: rate(u) * (u - low) / (at * h), low, top)
            u = u + line * (stages[-1] - stages[0])
        t, y = p.time(top), m + S(top) * u
        stages.append(q(p.alpha(t) * y, t))
    return y
