"""`draw`: prior, loop and last hop, a sample for each seed."""

import math

import pytest
import torch

from scoresde import (
    DDIM,
    VE,
    VP,
    Ancestral,
    Counted,
    Flow,
    Langevin,
    ReverseDiffusion,
    draw,
    exact,
    grid,
    ode,
    per_sample,
    sample,
)
from scoresde.noise import seeds
from scoresde.steps import SNR, GottaGoFast

F64 = torch.float64
LAW = exact.GaussianMixture(torch.tensor([0.3, 0.7]), torch.tensor([[-1.0, 0.5], [1.0, 0.0]]), torch.tensor([0.1, 0.2]))
VP_ = VP()
P, TS = VP_.reverse(LAW.diffuse(VP_)), grid.log_snr(VP_, 12)
WAYS = {
    "ancestral": (P, TS, (Ancestral(),)),
    "pair": (P, TS, (Langevin(SNR(0.1)), ReverseDiffusion())),
    "langevin alone": (P, TS, (Langevin(SNR(0.1), n=2),)),
    "flow": (VP_.reverse(P.score, 0.0), TS[[0, -1]], (Flow(ode.Dopri5(1e-6, 1e-6)),)),
    "adaptive": (P, TS[[0, 5, -1]], (GottaGoFast(),)),
}
ways = pytest.mark.parametrize(("p", "ts", "steps"), WAYS.values(), ids=WAYS)


@ways
def test_draw_is_what_it_says(p, ts, steps):
    """Prior, loop and E[x_0 | x_t] with the stream of each seed; the last hop is one network call more."""
    every = seeds(3, 5)
    noise, score = per_sample(every), Counted(p.score)
    x = sample(p, p.sde.prior((5, 2), noise, F64), ts, *steps, noise=noise)
    like, q = torch.empty(0, dtype=F64), p.sde.reverse(score, p.eta)
    raw = draw(q, (2,), ts, *steps, seeds=every, like=like, denoise=False)
    assert torch.equal(raw, x)
    calls, score.nfe = score.nfe, 0
    assert torch.equal(draw(q, (2,), ts, *steps, seeds=every, like=like), p.denoise(x, ts[-1]))
    assert score.nfe == calls + 1


@ways
def test_chunks_do_not_matter(p, ts, steps):
    """A row is its seed's alone: whole, in parts, in another order."""
    every, like = seeds(0, 6), torch.empty(0, dtype=F64)
    whole = draw(p, (2,), ts, *steps, seeds=every, like=like)
    parts = [draw(p, (2,), ts, *steps, seeds=part, like=like) for part in (every[:1], every[1:4], every[4:])]
    turned = draw(p, (2,), ts, *steps, seeds=every[::-1], like=like)
    for found in (torch.cat(parts), turned.flip(0)):
        torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)


def test_no_hop_where_no_noise_is_left():
    """At sigma = 0 the sample is there already."""
    sde, score = VP(), Counted(LAW.diffuse(VP()))
    x = draw(sde.reverse(score), (2,), grid.uniform(sde, 5, 0.0), Ancestral(), seeds=range(3))
    assert score.nfe == 5 and x.dtype == torch.get_default_dtype() and x.shape == (3, 2)


def test_the_law_of_many():
    """Mean and covariance of 4000 samples in 200 steps are the law's, within 5 standard errors and the steps' bias."""
    x = draw(P, (2,), grid.log_snr(VP_, 200), Ancestral(), seeds=seeds(1, 4000), like=torch.empty(0, dtype=F64))
    fresh = LAW.sample(400_000, torch.Generator().manual_seed(0))
    error = fresh.std(0) / math.sqrt(len(x))
    assert ((x.mean(0) - fresh.mean(0)).abs() < 5 * error + 0.01).all()
    assert (torch.cov(x.T) - torch.cov(fresh.T)).abs().max() < 0.06


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: draw(VP(), (2,), TS, Ancestral(), seeds=range(2)), "^p must be a Reverse process"),
        (lambda: draw(P, (2,), TS[3:], Ancestral(), seeds=range(2)), "^ts must begin at T = 1, .* got "),
        (lambda: draw(P, (2,), TS.flip(0), Ancestral(), seeds=range(2)), "^ts must strictly decrease"),
        (lambda: draw(P, (2,), TS, seeds=range(2)), "^steps must"),
        (lambda: draw(P, (2,), TS, DDIM(), DDIM(), seeds=range(2)), "^steps must"),
        (lambda: draw(P, (2,), TS, Ancestral(), seeds=[]), "^seeds must"),
        (lambda: draw(P, (2,), TS, Ancestral(), seeds=3), "^seeds must"),
        (lambda: draw(P, (2,), TS, Ancestral(), seeds=[-1]), "^seeds must"),
        (lambda: draw(P, (3,), TS, Ancestral(), seeds=range(2)), r"^x must have shape \(B, 2\)"),
    ],
)
def test_bad_input(call, said):
    """One clear line; a grid that begins elsewhere would take noise of T for that of another time."""
    with pytest.raises(ValueError, match=said) as error:
        call()
    assert len(str(error.value).splitlines()) == 1


def test_a_sample_that_is_lost_is_named():
    """The first that is not finite, by its seed."""
    sde = VE(0.05, 10.0)
    p = sde.reverse(lambda x, t: torch.where(x[:, :1] < 0, math.nan, 0 * x), 0.0)
    like, every = torch.empty(0, dtype=F64), [7, 8, 9, 10]
    lost = sde.prior((4, 2), per_sample(every), F64)[:, 0] < 0
    assert lost.any() and not lost.all()
    i = int(lost.nonzero()[0])
    with pytest.raises(RuntimeError, match=f"^sample {i}, of seed {every[i]}, is not finite"):
        draw(p, (2,), grid.log_snr(sde, 3), DDIM(), seeds=every, like=like)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """At sigma = 378, whose square no float16 holds, samples like half are those like float32, rounded once."""
    sde, every = VE(0.01, 378.0), seeds(0, 4)
    p = sde.reverse(LAW.diffuse(sde))
    want, found = (
        draw(p, (2,), grid.log_snr(sde, 12), Ancestral(), seeds=every, like=torch.empty(0, dtype=of))
        for of in (torch.float32, dtype)
    )
    assert found.dtype == dtype and torch.equal(found, want.to(dtype))
