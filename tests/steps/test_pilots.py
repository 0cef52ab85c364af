"""Pilots: trajectories from which a solver is fitted, and what they tell."""

import math
import re

import numpy as np
import pytest
import torch
from flows import LAWS, close, data, fresh, truth

from scoresde import EDM, VE, VP, Counted, RectifiedFlow, Reference, grid, iid
from scoresde.exact import Gaussian
from scoresde.guide import combined
from scoresde.steps import pilots as module
from scoresde.steps.step import trajectory
from scoresde.steps.tuned import Error

F64 = torch.float64


@pytest.mark.parametrize("sde", [VP(), VE(), EDM()], ids=str)
def test_the_mean_is_that_of_the_pilots(sde):
    """Of Gaussian data it is exact, whatever mean was told. Of a mixture, told by 20 samples with a standard error of
    0.16 deviations, it is off by less than 5/(30 sqrt(64)) = 0.021 of them.
    """
    mean = torch.tensor([1.0, -2.0], dtype=F64)
    x_T = sde.prior((64, 2), iid(torch.Generator().manual_seed(3)), F64)
    q = sde.reverse(Gaussian(mean, 0.3**2).diffuse(sde), 0.0)
    close(module.centred(q, x_T, Reference(mean + 0.1, 0.3)).mean, mean, rtol=0, atol=1e-11)
    law = LAWS["modes"]
    told = Reference.fit(law.sample(20, torch.Generator().manual_seed(0)))
    found = module.centred(sde.reverse(law.diffuse(sde), 0.0), x_T, told)
    assert found.std == told.std
    assert float(found.mean.abs().max()) < 0.021 * told.std < 0.2 * float(torch.as_tensor(told.mean).abs().max())


@pytest.mark.parametrize(
    "sde", [VP(), *(pytest.param(sde, marks=pytest.mark.slow) for sde in (VE(), RectifiedFlow()))], ids=str
)
def test_they_are_the_flows_own(sde):
    """Their ends are the flow's: twice as many calls leave less than a tenth of the median error, as a method of fourth
    order does (measured: 20 to 50) and one of third does not. Between nodes they are it too, to the fourth power of
    the distance: of half as many a twelfth is left at least. The ends are those without what is kept besides, and cost
    one call less.
    """
    law = LAWS["modes"]
    score = Counted(law.diffuse(sde))
    q, around = sde.reverse(score, 0.0), Reference.fit(data(law))
    x_T = fresh(q, (2,), 64)
    end = truth(q, x_T, 1e-10)
    rough, fine = (Error.of(module.Trajectories(q, x_T, around, n).end, end) for n in (80, 160))
    assert 10 < rough.median / fine.median and fine.rms < 1e-5
    ts = grid.quadratic(sde, 7)
    middle = truth(q, x_T, 1e-10, ts[[0, 3]])
    off = []
    for n in (100, 200):
        before = score.nfe
        pilots = module.Trajectories(q, x_T, around, n)
        assert score.nfe - before == n + 1
        assert module.ends(q, x_T, around, n).equal(pilots.end) and score.nfe - before == 2 * n + 1
        at = pilots.at(ts)
        assert len(at) == 8 and at[0].equal(x_T) and at[-1] is pilots.end
        off.append(Error.of(at[3], middle).median)
    assert off[1] < off[0] / 12 and off[1] < 1e-5


def test_at_its_own_nodes():
    """The polynomials go through the states that they are made of, in either kind of number."""
    law, sde = LAWS["mixture"], VP()
    q, around = sde.reverse(law.diffuse(sde), 0.0), Reference.fit(data(law))
    for dtype, most in ((F64, 1e-12), (torch.float32, 1e-5)):
        pilots = module.Trajectories(q, fresh(q, law.shape, 8).to(dtype), around, 60)
        for found, state in zip(pilots.at(pilots.ts), pilots.states, strict=True):
            assert found.dtype == dtype
            close(found, state, rtol=most, atol=most)


def test_what_is_not_finite():
    """A flow that leaves the numbers has no pilots."""
    sde = VP()
    q = sde.reverse(lambda x, t: x * torch.inf, 0.0)
    with pytest.raises(RuntimeError, match="trajectories are not finite"):
        module.Trajectories(q, fresh(q, (2,), 4), Reference(0.0, 1.0), 20)


def test_evaluations():
    """Counted by sample, whatever the score says of itself besides."""
    score = module.Metered(LAWS["modes"].diffuse(VP()))
    for n in (3, 5):
        score(torch.zeros(n, 2, dtype=F64), torch.tensor(0.5))
    assert (score.evaluations, score.nfe) == (8, 2)
    assert score.moments[1].shape == (2,)


@pytest.mark.parametrize("sde", [VP(), VE(), EDM(), RectifiedFlow()], ids=lambda sde: type(sde).__name__)
def test_size_and_density(sde):
    """size is the root mean square, over samples and dimensions, of R S/sigma~, R what is left of E[x_0 | x_t] when
    that of N(m, c^2 I) is taken away. The density is the cube root of |q''| g/S, smoothed over seven values.
    """
    law = LAWS["mixture"]
    q, around = sde.reverse(law.diffuse(sde), 0.0), Reference.fit(data(law))
    pilots = module.Trajectories(q, fresh(q, law.shape, 8), around, 60)
    sized, lam, density = module.residual(pilots)
    ts = grid.reference(sde, 60, around=Reference(std=around.std))
    states = list(trajectory(q, pilots.x_T, ts, module.fine_step(around)))
    noise, m, c = (sde.sigma(ts) / sde.alpha(ts)), around.mean, around.std
    S = (c**2 + noise**2).sqrt()
    R = [q.denoise(x, t) - m - c**2 / s**2 * (x / sde.alpha(t) - m) for x, t, s in zip(states, ts, S, strict=True)]
    values = torch.stack([(r * s / v).flatten() for r, s, v in zip(R, S, noise, strict=True)])
    size = values.square().mean(1).sqrt()
    assert sized.mean is around.mean and sized.std == c
    close(lam, sde.log_snr(ts))
    close(torch.tensor(sized.size, dtype=F64), torch.stack([lam, size], 1), rtol=1e-8, atol=1e-12)

    u = lam.numpy()
    bend = np.gradient(np.gradient((values / size[:, None]).numpy(), u, axis=0), u, axis=0)
    raw = np.cbrt(np.sqrt(np.square(bend).mean(1)) * (size * noise / S / S).numpy())
    smooth = np.convolve(np.pad(raw, 3, mode="edge"), np.full(7, 1 / 7), mode="valid")
    close(density, torch.from_numpy(smooth), rtol=1e-6, atol=1e-12)


def test_several_flows_at_once():
    """Each is asked about its own rows, in turn, and every call is counted."""
    sde = VP()
    scores = [Counted(law.diffuse(sde)) for law in (Gaussian(torch.zeros(2, dtype=F64), v) for v in (0.1, 1.0, 3.0))]
    q = module.together([sde.reverse(score, 0.0) for score in scores], module.Pilots(8))
    x, t = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=F64), torch.tensor(0.4, dtype=F64)
    counted = Counted(q.score)
    said = counted(x, t)
    assert [score.nfe for score in scores] == [1, 1, 1] and counted.nfe == 3
    for i in range(7):
        close(said[i], scores[i % 3].f(x[[i]], t)[0])
    close(q.score(x[:2], t), said[:2])
    one = sde.reverse(scores[0], 0.0)
    assert module.together(one, module.Pilots(8)) is one is module.together([one], module.Pilots(8))


@pytest.mark.parametrize(
    ("flows", "said"),
    [
        ([], "q must be a probability flow, or several, got none"),
        ([VP().reverse(LAWS["modes"].diffuse(VP()), eta) for eta in (0.0, 1.0)], "q must be of one eta, got 0 and 1"),
        ([s.reverse(LAWS["modes"].diffuse(s), 0.0) for s in (VP(), VE())], "q must be flows of one process, got VP("),
        ([VP().reverse(LAWS["modes"].diffuse(VP()), 0.0)] * 9, "pilots must be at least as many as flows, 9, got 8"),
    ],
    ids=["none", "two etas", "two processes", "many"],
)
def test_flows_that_do_not_go_together(flows, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        module.together(flows, module.Pilots(8))


def test_calls_of_a_guided_score_are_evaluations():
    """Two networks are asked about each sample, or one twice; of flows that share the rows each about its own."""
    law = LAWS["modes"].diffuse(VP())
    twice = combined((0.5, law), (0.5, law))
    x, t = torch.zeros(6, 2, dtype=F64), torch.tensor(0.5, dtype=F64)
    for score, want in ((law, 6), (twice, 12), (module.Divided([law, law, law]), 6), (module.Divided([twice] * 2), 12)):
        meter = module.Metered(score)
        meter(x, t)
        assert (meter.evaluations, meter.each) == (want, want // 6)


def test_starts_of_half_precision_are_carried_in_more():
    """As `sample` carries them: the ends of what is kept at nodes and of what is not are the same."""
    law, sde = LAWS["mixture"], VP()
    q = sde.reverse(law.diffuse(sde), 0.0)
    like = torch.empty(1, 16, dtype=torch.bfloat16)
    x_T = module.Pilots(8).sets(q, like)[0]
    assert x_T.dtype == torch.float32
    around = Reference.fit(data(law))
    assert module.Trajectories(q, x_T, around, 40).end.equal(module.ends(q, x_T, around, 40))


# roughness in t


def smooth_and_rough(size, law, sde, around):
    """The score of a law, whose q has sin(2 pi 1009.7 lambda + phase) times size added, a phase for each dimension."""
    score = law.diffuse(sde)
    phase = 2 * torch.pi * torch.rand(*law.shape, generator=torch.Generator().manual_seed(1), dtype=F64)

    def rough(x, t):
        S = (around.std**2 + sde.var(t) / sde.alpha(t) ** 2).sqrt()
        wave = torch.sin(2 * torch.pi * 1009.7 * sde.log_snr(t) + phase)
        return score(x, t) + size * wave / (sde.sigma(t) * S)

    return sde.reverse(rough, 0.0)


def test_roughness_of_gaussian_data_is_none():
    """Their q is constant, 0, and what rounding leaves is no roughness, in either kind of number."""
    mean = torch.tensor([1.0, -2.0], dtype=F64)
    law = Gaussian(mean, 0.3**2)
    for sde in (VP(), VE(), EDM()):
        q = sde.reverse(law.diffuse(sde), 0.0)
        for dtype in (F64, torch.float32):
            pilots = module.Trajectories(q, fresh(q, (2,), 8, dtype=dtype), Reference(mean, 0.3), 60)
            found, _, each = pilots.roughness()
            assert found == 0 and not each.any()


def test_roughness_of_a_smooth_law_falls_with_the_nodes_distance():
    """By its third power at last, of which nodes of unequal distance leave some: four times as many nodes leave less
    than a twentieth.
    """
    law, sde = LAWS["modes"], VP()
    q, around = sde.reverse(law.diffuse(sde), 0.0), Reference.fit(data(law))
    coarse, fine = (module.Trajectories(q, fresh(q, (2,), 16), around, n).roughness()[0] for n in (60, 240))
    assert 0 < fine < coarse / 20 and fine < 0.01


def test_roughness_is_what_cubic_polynomials_miss():
    """By numpy's own polynomials, at every other node, and over all of them."""
    law, sde = LAWS["mixture"], VE()
    q, around = sde.reverse(law.diffuse(sde), 0.0), Reference.fit(data(law))
    pilots = module.Trajectories(q, fresh(q, law.shape, 6), around, 31)
    lam = sde.log_snr(pilots.ts).numpy()
    values = torch.stack([seen.flatten() for seen in pilots.seen]).numpy()
    missed, changed, nodes = [], [], range(3, 28, 2)
    for k in nodes:
        at = [k - 3, k - 1, k + 1, k + 3]
        bent = np.polyfit(lam[at] - lam[k], values[at], 3)[-1]
        missed.append(np.mean((values[k] - bent) ** 2))
        changed.append(np.mean((values[k + 1] - values[k - 1]) ** 2))
    found, at, each = pilots.roughness()
    close(at, sde.log_snr(pilots.ts)[list(nodes)])
    close(each, torch.tensor(np.sqrt(np.array(missed) / np.array(changed))), rtol=1e-7)
    assert found == pytest.approx(np.sqrt(np.sum(missed) / np.sum(changed)), rel=1e-7)


def test_roughness_of_few_nodes():
    """Below seven there is none that cubic polynomials could miss: nobody can tell, and nothing fails."""
    law, sde = LAWS["mixture"], VP()
    q, around = sde.reverse(law.diffuse(sde), 0.0), Reference.fit(data(law))
    told = [module.Trajectories(q, fresh(q, law.shape, 8), around, n).roughness()[0] for n in (2, 3, 4, 5, 6)]
    assert [math.isnan(one) for one in told] == [True] * 4 + [False]


def test_roughness_of_noise():
    """Of q that are independent at equal steps of lambda it is sqrt(105/128), as 1 + 164/256 over 2 are; and of a score
    with much of a wave too short for its nodes it is what their weights say of independent q.
    """
    law, sde = LAWS["mixture"], EDM()
    around, g = Reference.fit(data(law)), torch.Generator().manual_seed(0)
    pilots = module.Trajectories(smooth_and_rough(100.0, law, sde, around), fresh(q_of(sde), law.shape, 8), around, 160)
    lam = sde.log_snr(pilots.ts).numpy()
    squares = []
    for k in range(3, 158, 2):
        at = lam[[k - 3, k - 1, k + 1, k + 3]] - lam[k]
        w = np.linalg.solve(np.vander(at, 4, increasing=True).T, [1.0, 0, 0, 0])
        squares.append(1 + np.sum(w**2))
    assert pilots.roughness()[0] == pytest.approx(np.sqrt(np.mean(squares) / 2), rel=0.1)
    pilots.ts = grid.log_snr(sde, 160)
    pilots.seen = list(torch.randn(161, 8, 16, generator=g, dtype=F64))
    assert pilots.roughness()[0] == pytest.approx((105 / 128) ** 0.5, rel=0.02)


def q_of(sde):
    """A flow from which starts are drawn."""
    return sde.reverse(lambda x, t: x, 0.0)


def test_roughness_does_not_depend_on_the_scale():
    """Data and noise levels c times as large, and c times the q."""
    law, c = LAWS["mixture"], 7.0
    one, other, around = EDM(), EDM(T=c * EDM().T, t_min=c * EDM().t_min), Reference.fit(data(law))
    score, x_T = law.diffuse(one), fresh(q_of(one), law.shape, 8)
    small = module.Trajectories(one.reverse(score, 0.0), x_T, around, 60)
    scaled = other.reverse(lambda x, t: score(x / c, t / c) / c, 0.0)
    large = module.Trajectories(scaled, c * x_T, Reference(c * around.mean, c * around.std), 60)
    assert large.roughness()[0] == pytest.approx(small.roughness()[0], rel=1e-6)


def test_too_few_nodes_tell_no_roughness():
    law, sde = LAWS["mixture"], VP()
    q = sde.reverse(law.diffuse(sde), 0.0)
    found = [module.Trajectories(q, fresh(q, law.shape, 4), Reference.fit(data(law)), n).roughness()[0] for n in (5, 6)]
    assert np.isnan(found[0]) and found[1] > 0
