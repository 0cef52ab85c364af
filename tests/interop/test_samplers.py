"""Our samplers in the loops of diffusers and k-diffusion: what comes out is what comes out here."""

from functools import partial

import numpy as np
import pytest
import torch
from made import of_k_diffusion
from test_pipelines import X, generator, unet

from scoresde import Ancestral, Flow, GaussianReference, Reference, UniPC, grid, iid, ode, sample
from scoresde.interop import Scheduler, from_denoiser, from_diffusers, k_sampler
from scoresde.process import EDM

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

AROUND = Reference(0.0, 0.5)
REFERENCE = partial(grid.reference, around=AROUND)


def ours(model, step, ts, eta, seed, n):
    """From the noise that a pipeline draws, in its own type, to the mean of the data at the last time."""
    g = generator(seed)
    x_T = torch.randn(n, 1, 8, 8, generator=g)
    p = model.sde.reverse(model, eta)
    with torch.no_grad():
        return p.denoise(sample(p, x_T, ts, step, noise=iid(g)), ts[-1])


@pytest.mark.parametrize(
    ("step", "of", "eta"),
    [
        (GaussianReference(AROUND), REFERENCE, 0.0),
        (UniPC(2), grid.log_snr, 0.0),
        (Ancestral(0.5), grid.uniform, 1.0),
    ],
    ids=["GaussianReference", "UniPC", "Ancestral"],
)
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_a_pipeline_of_diffusers(step, of, eta, predicts):
    """A whole loop of its own, with our steps in the place of its scheduler: as many calls as were asked for, and the
    images that `sample` makes, to 2e-5 of grey.
    """
    net, theirs = unet(), diffusers.DDPMScheduler(prediction_type=predicts)
    pipe = diffusers.DDPMPipeline(net, theirs)
    model = from_diffusers(pipe)
    pipe.scheduler = Scheduler(pipe, step, of, eta)
    pipe.set_progress_bar_config(disable=True)
    calls, forward = [], net.forward
    net.forward = lambda *a, **k: (calls.append(0), forward(*a, **k))[1]
    made = pipe(batch_size=3, generator=generator(5), num_inference_steps=12, output_type="np").images
    assert len(calls) == 12
    net.forward = forward
    want = (ours(model, step, of(model.sde, 11), eta, 5, 3) / 2 + 0.5).clamp(0, 1)
    assert float(want.std()) > 0.05
    np.testing.assert_allclose(made, want.permute(0, 2, 3, 1), atol=2e-5)


def test_edm_and_a_generator_for_each():
    """Where the network wants its input scaled; noise of each sample's own."""
    net, theirs = unet(), diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0)
    own = Scheduler(net, Ancestral(), grid.log_snr, 1.0, theirs)
    model = from_diffusers(net, theirs)
    own.set_timesteps(6)
    x_T, x = 50 * X, 50 * X
    with torch.no_grad():
        for t in own.timesteps:
            out = net(own.scale_model_input(x, t), t).sample
            x = own.step(out, t, x, generator=[generator(k) for k in range(3)], return_dict=False)[0]
    draws = [generator(k) for k in range(3)]

    def noise(y, t, s):  # each generator is new at every step
        for k, g in enumerate(draws):
            g.manual_seed(k)
        return torch.cat([torch.randn(1, 1, 8, 8, generator=g) for g in draws])

    p, ts = model.sde.reverse(model), grid.log_snr(model.sde, 5)
    with torch.no_grad():
        want = p.denoise(sample(p, x_T, ts, Ancestral(), noise=noise), ts[-1])
    torch.testing.assert_close(x, want, rtol=1e-3, atol=1e-4)


def test_other_pipelines():
    """One that hands eta on, and one that splits a learned variance off by itself."""
    pipe = diffusers.DDIMPipeline(unet(), diffusers.DDIMScheduler())
    pipe.scheduler = Scheduler(pipe, UniPC(2))
    pipe.set_progress_bar_config(disable=True)
    made = pipe(batch_size=2, generator=generator(5), num_inference_steps=6, output_type="np").images
    assert np.isfinite(made).all()
    with pytest.raises(
        ValueError, match="eta and use_clipped_model_output must be those of this scheduler, 0 and False"
    ):
        pipe(batch_size=2, eta=0.5, num_inference_steps=6, output_type="np")
    net = unet(out_channels=2)
    both = Scheduler(net, UniPC(2), scheduler=diffusers.DDPMScheduler(variance_type="learned_range"))
    found = []
    with torch.no_grad():
        for split in (False, True):
            both.set_timesteps(4)
            out = net(X, both.timesteps[0]).sample
            found.append(both.step(out[:, :1] if split else out, both.timesteps[0], X).prev_sample)
    assert torch.equal(*found)


def test_what_a_scheduler_refuses():
    net, theirs = unet(), diffusers.DDPMScheduler()
    with pytest.raises(ValueError, match="step must be a Step"):
        Scheduler(net, "ddim", scheduler=theirs)
    twice = Scheduler(net, Flow(ode.Heun()), grid.uniform, scheduler=theirs)
    twice.set_timesteps(4)
    with pytest.raises(ValueError, match="step must ask for the score once an interval, where it begins, which Flow"):
        twice.step(X, twice.timesteps[0], X)
    once = Scheduler(net, UniPC(2), scheduler=theirs)
    with pytest.raises(ValueError, match="num_inference_steps must"):
        once.set_timesteps(1)
    once.set_timesteps(4)
    with pytest.raises(ValueError, match="timestep must be the next of those that were set, got 5"):
        once.step(X, 5, X)
    with pytest.raises(ValueError, match="thresholding cannot be honoured"):
        Scheduler(net, UniPC(2), scheduler=diffusers.DDPMScheduler(thresholding=True))


class K(torch.nn.Module):
    """A denoiser that is a module."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, sigma):
        return self.net(x) / (1 + sigma[:, None] ** 2)


def test_a_function_of_k_diffusion():
    """Called as its samplers are, on its own levels, with what the model is told beside."""
    levels = of_k_diffusion("sampling").get_sigmas_karras(10, 0.05, 20.0)
    told, seen = [], []

    def model(x, sigma, shift=0.0):
        told.append(shift)
        return x / (1 + sigma[:, None] ** 2) + shift

    x_T = 20 * torch.randn(4, 2, generator=generator(), dtype=torch.float64)
    made = k_sampler(UniPC(2))(model, x_T, levels, {"shift": 0.1}, lambda said: seen.append(said["x"]))
    assert len(told) == 10 and set(told) == {0.1}
    sde, ts = EDM(T=float(levels[0]), t_min=float(levels[-2])), levels[:-1].double()
    p = sde.reverse(lambda x, t: from_denoiser(model, float(ts[-1]), float(ts[0]))(x, t, shift=0.1), 0.0)
    with torch.no_grad():
        want = p.denoise(sample(p, x_T, ts, UniPC(2)), ts[-1])
    torch.testing.assert_close(made, want, rtol=1e-10, atol=1e-12)
    assert torch.equal(seen[0], made)
    net = torch.nn.Linear(2, 2).double()
    k_sampler(UniPC(2))(lambda x, s, scale: net(x) * scale, x_T, levels, {"scale": 7})
    own = K(net)
    k_sampler(UniPC(2))(own.train(), x_T, levels)
    assert own.training and net.weight.requires_grad
    with pytest.raises(ValueError, match="sigmas must be at least two decreasing noise levels above 0"):
        k_sampler(UniPC(2))(model, x_T, torch.tensor([10.0, 0.0]))
    noisy = k_sampler(Ancestral(), eta=1.0, noise=iid(generator(3)))(model, x_T, levels[:-1])
    want = sample(sde.reverse(lambda x, t: from_denoiser(model, float(ts[-1]), float(ts[0]))(x, t)), x_T, ts,
                  Ancestral(), noise=iid(generator(3)))  # fmt: skip
    torch.testing.assert_close(noisy, want, rtol=1e-10, atol=1e-12)
