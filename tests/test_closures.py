"""Scores whose estimate of the data is kept in a range, by each sample's own scale."""

import pytest
import torch

from scoresde import VE, VP, Counted
from scoresde import closures as module
from scoresde.model import clamped, thresholded

F64 = torch.float64
SDES = [VP(), VE(0.05, 20.0)]
RATIOS = (0.3, 0.9, 0.995, 1.0)


def wide(sde):
    """A score whose estimates of the data, 0.05 x to 3 x, lie far outside [-1, 1] in some rows, and not in others."""

    def score(x, t):
        gains = torch.linspace(0.05, 3, len(x), dtype=F64).view(-1, *(1,) * (x.ndim - 1))
        alpha, var = (v.view(-1, 1, 1, 1) if v.ndim else v for v in (sde.alpha(t), sde.var(t)))
        return (alpha * gains * x - x) / var

    return score


def images(n=6):
    return torch.randn(n, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=F64)


def near(a, b):
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("ratio", RATIOS)
def test_dynamic_thresholding(ratio, sde):
    """A row's estimate, sorted by size, is cut at its own quantile s if that is above 1, which then is 1: by hand."""
    x, t = images(), torch.tensor(0.4, dtype=F64)
    free = sde.reverse(wide(sde)).denoise(x, t)
    found = sde.reverse(thresholded(wide(sde), sde, ratio)).denoise(x, t)
    inside = 0
    for a, b in zip(free, found, strict=True):
        size = a.abs().flatten().sort().values
        at = ratio * (len(size) - 1)
        low = int(at)
        s = float(size[low] + (at - low) * (size[min(low + 1, len(size) - 1)] - size[low]))
        inside += s <= 1
        near(b, a.clamp(-max(s, 1.0), max(s, 1.0)) / max(s, 1.0))
    assert 0 < inside < len(x) and found.abs().max() <= 1 + 1e-12


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("most", [1.0, 1.5, 1e3])
def test_widely_used_code(ratio, most):
    """It is `_threshold_sample` of diffusers' schedulers."""
    diffusers = pytest.importorskip("diffusers")
    options = {"dynamic_thresholding_ratio": ratio, "sample_max_value": most}
    its, sde = diffusers.DDPMScheduler(thresholding=True, **options), VP()
    x, t = images(), torch.tensor(0.4, dtype=F64)
    want = its._threshold_sample(sde.reverse(wide(sde)).denoise(x, t))
    near(sde.reverse(thresholded(wide(sde), sde, ratio, most)).denoise(x, t), want)


def test_no_more_than_1_is_to_clamp():
    sde, x, t = VP(), images(), torch.linspace(0.1, 1, 6, dtype=F64)
    near(thresholded(wide(sde), sde, 0.9, 1.0)(x, t), clamped(wide(sde), sde)(x, t))


def test_rows_and_calls():
    """A row does not depend on its neighbours, whose times may be others; one call of the score is one call."""
    sde, x, t = VP(), 3 * images(), torch.linspace(0.1, 1, 6, dtype=F64)
    alone = lambda x, t: 2 * x  # noqa: E731
    every = thresholded(alone, sde, 0.8)(x, t)
    for i in range(6):
        near(thresholded(alone, sde, 0.8)(x[i : i + 1], t[i : i + 1]), every[i : i + 1])
        near(thresholded(alone, sde, 0.8)(x[i : i + 1], t[i]), every[i : i + 1])
    score = Counted(alone)
    thresholded(score, sde)(x, t)
    assert score.nfe == 1 and thresholded(alone, sde)(x.half(), t).dtype == torch.float16


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: thresholded(wide(VP()), VP(), 0.0), "ratio must be"),
        (lambda: thresholded(wide(VP()), VP(), 1.1), "ratio must be"),
        (lambda: thresholded(wide(VP()), VP(), most=0.5), "most must be"),
        (lambda: thresholded(wide(VP()), "vp"), "sde must be"),
        (lambda: thresholded(wide(VP()), VP())(images(), torch.tensor(0.0)), "singular where sigma = 0"),
    ],
)
def test_bad_input_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_the_quantile_is_torchs(dtype):
    """To the last bit, of rows of any length that it takes, of one number on, and NaN where one is."""
    g = torch.Generator().manual_seed(0)
    for n in (1, 2, 3, 10, 784, 12288):
        x = torch.randn(5, n, generator=g, dtype=dtype).abs()
        for ratio in (1e-3, 1 / 3, 0.5, *RATIOS):
            assert module._quantile(x, ratio).equal(x.quantile(ratio, 1))
    x[1, 7] = torch.nan
    assert module._quantile(x, 0.1).isnan().tolist() == [False, True, False, False, False]


@pytest.mark.slow
def test_samples_of_any_size():
    """Of more numbers than `torch.quantile` takes: of those from 0 to 2 in equal steps, a tenth is cut at 1.8."""
    n, sde, t = (1 << 24) + 4, VP(), torch.tensor(0.4, dtype=F64)
    alpha, var = float(sde.alpha(t)), float(sde.var(t))
    x = torch.arange(n, dtype=torch.float32).div_(n).roll(n // 3)[None]
    with pytest.raises(RuntimeError, match="too large"):
        x.quantile(0.9)
    score = thresholded(lambda x, t: x * ((2 * alpha - 1) / var), sde, 0.9)
    found = sde.reverse(score).denoise(x, t)
    torch.testing.assert_close(found, (2 * x / 1.8).clamp_max(1.0), rtol=1e-5, atol=1e-5)
    assert float((found > 1 - 1e-6).double().mean()) == pytest.approx(0.1, abs=1e-4)
