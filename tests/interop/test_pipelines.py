"""Networks of diffusers, natively and here: the same noise, the same chain of samples, and what cannot be honoured is
refused by its name.
"""

import json
import re

import pytest
import torch

from scoresde import Ancestral, Epsilon, Karras, iid, log_prob, sample
from scoresde.interop import from_diffusers
from scoresde.model import Data, FlowVelocity, LogSNR, NoiseLevel, ScoreValue, StepIndex, Time, TwoHeads, Velocity
from scoresde.process import EDM, VE, RectifiedFlow

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def unet(**config):
    """A tiny network with weights that do something."""
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8,
        **{"in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "norm_num_groups": 4} | config,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
    )
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return net.eval()


X = torch.randn(3, 1, 8, 8, generator=generator(1))
BETAS = {
    "linear": {},
    "scaled_linear": {"beta_start": 8.5e-4, "beta_end": 0.012},
    "squaredcos_cap_v2": {},
    "sigmoid": {},
}
PREDICTED = {"epsilon": Epsilon(), "sample": Data(), "v_prediction": Velocity()}


@pytest.mark.parametrize("kind", BETAS)
@pytest.mark.parametrize("predicts", PREDICTED)
@torch.no_grad()
def test_the_same_noise(kind, predicts):
    """At steps of the chain, by the formulas of DDPM, DDIM and v-prediction in their own table, to 1e-6 of it; their
    products of it in single precision are within 1e-6 of these too.
    """
    net = unet().double()
    theirs = diffusers.DDPMScheduler(beta_schedule=kind, prediction_type=predicts, **BETAS[kind])
    model = from_diffusers(net, theirs)
    assert model.predicts == PREDICTED[predicts] and model.clock == StepIndex(1000)
    for i in (0, 17, 500, 998):
        a, x = (1 - theirs.betas.double()).cumprod(0)[i], X.double()
        assert float(theirs.alphas_cumprod[i]) == pytest.approx(float(a), rel=1e-6)
        out = net(x, i).sample
        want = {
            "epsilon": out,
            "sample": (x - a.sqrt() * out) / (1 - a).sqrt(),
            "v_prediction": a.sqrt() * out + (1 - a).sqrt() * x,
        }[predicts]
        found = model.eps(x, (i + 1) / 1000)
        assert float((found - want).norm() / want.norm()) < 1e-6


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_the_same_chain(predicts):
    """All steps of DDPM with its larger variance, from one start and the same noise: ours end where theirs do."""
    net = unet()
    theirs = diffusers.DDPMScheduler(
        50, beta_end=0.2, prediction_type=predicts, clip_sample=False, variance_type="fixed_large"
    )
    theirs.set_timesteps(50)
    x, drawn = X.double(), []
    net.double()
    for i in theirs.timesteps:
        g = generator(int(i))
        x = theirs.step(net(x, i).sample, int(i), x, generator=g).prev_sample
        drawn.append(torch.randn(X.shape, generator=generator(int(i)), dtype=torch.float64))
    model = from_diffusers(net, theirs)
    given = iter(drawn)
    ours = sample(model.sde.reverse(model), X.double(), model.sde.grid(), Ancestral(1.0), noise=lambda *_: next(given))
    assert float((ours - x).norm() / x.norm()) < 1e-5


def saved(folder, net, scheduler):
    diffusers.DDPMPipeline(net, scheduler).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_folders_and_pipelines(tmp_path):
    """A pipeline, its folder, that of its network beside that of its scheduler, and both as they are: one score."""
    net, theirs = unet(), diffusers.DDIMScheduler()
    folder = saved(tmp_path / "pipe", net, theirs)
    want = from_diffusers(net, theirs)(X, 0.3)
    sources = [
        (diffusers.DDIMPipeline(net, theirs), None),
        (folder, None),
        (str(folder / "unet"), folder / "scheduler"),
        (net, folder / "scheduler"),
        (folder, diffusers.DDPMScheduler()),
    ]
    for source, scheduler in sources:
        torch.testing.assert_close(from_diffusers(source, scheduler)(X, 0.3), want, rtol=1e-6, atol=1e-7)
    model = from_diffusers(folder)
    found = log_prob(model.sde.reverse(model), X, noise=iid(generator()))
    assert found.log_p.isfinite().all() and found.nfe > 20


@torch.no_grad()
def test_other_processes():
    """What EDM's scheduler makes of a network is Karras' parametrisation; a network of NCSN++ says the score; one of
    flow matching the velocity, told the time in thousandths.
    """
    net = unet()
    edm = diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0, sigma_data=0.7)
    model = from_diffusers(net, edm)
    assert model.sde == EDM(T=50.0, t_min=0.01) and model.clock == LogSNR(-0.25) and isinstance(model.predicts, Karras)
    for sigma in (0.05, 1.0, 20.0):
        x, s = sigma * X, torch.tensor(sigma)
        out = net(edm.precondition_inputs(x, s), edm.precondition_noise(s)).sample
        want = (x - edm.precondition_outputs(x, out, s)) / sigma
        torch.testing.assert_close(model.eps(x, sigma), want, rtol=1e-3, atol=1e-5)
    ve = unet(time_embedding_type="fourier")
    model = from_diffusers(ve, diffusers.ScoreSdeVeScheduler(sigma_min=0.02, sigma_max=30.0))
    assert (model.sde, model.predicts, model.clock) == (VE(0.02, 30.0), ScoreValue(), NoiseLevel())
    sigma = float(model.sde.sigma(0.4))
    torch.testing.assert_close(model(X, 0.4), ve(X, torch.tensor(sigma)).sample, rtol=1e-4, atol=1e-5)
    model = from_diffusers(net, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    assert (model.sde, model.predicts, model.clock) == (RectifiedFlow(), FlowVelocity(), Time(1000.0))
    want = X + 0.75 * net(X, torch.tensor(250.0)).sample  # x_0 + z - x_0, of x = 0.75 x_0 + 0.25 z
    torch.testing.assert_close(model.eps(X, 0.25), want, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_classes_rows_and_variances():
    """Labels go by the network's own name, and a transformer's row for none is used without one; a network of rows is
    asked for whole steps; one of twice the channels has a variance too.
    """
    net, theirs = unet(num_class_embeds=5), diffusers.DDPMScheduler()
    model, label = from_diffusers(net, theirs), torch.tensor([0, 4, 2])
    want = net(X, 499, class_labels=label).sample
    torch.testing.assert_close(model.eps(X, 0.5, label=label), want, rtol=1e-5, atol=1e-6)
    assert model.net.classes == 5
    rows = from_diffusers(unet(time_embedding_type="learned", num_train_timesteps=1000), theirs)
    assert rows.clock == StepIndex(1000, whole=True)
    torch.testing.assert_close(rows.eps(X, 0.5), rows.eps(X, 0.5004))
    torch.manual_seed(0)
    dit = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=1,
        out_channels=2,
        num_layers=1,
        sample_size=8,
        num_embeds_ada_norm=10,
        norm_num_groups=1,
    ).eval()
    for p in dit.parameters():
        torch.nn.init.normal_(p, std=0.1)
    model = from_diffusers(dit, diffusers.DDPMScheduler(variance_type="learned_range"))
    assert isinstance(model, TwoHeads) and model.net.classes == 10
    out = dit(X, torch.full((3,), 499), label).sample
    torch.testing.assert_close(model.eps(X, 0.5, label=label), out[:, :1], rtol=1e-4, atol=1e-6)
    none = dit(X, torch.full((3,), 499), torch.full((3,), 10)).sample
    torch.testing.assert_close(model.eps(X, 0.5), none[:, :1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.both(X, 0.5)[1], (none[:, 1:] + 1) / 2, rtol=1e-4, atol=1e-6)


SCHEDULERS = [
    (lambda: diffusers.DDPMScheduler(thresholding=True), "DDPMScheduler.thresholding cannot be honoured: dynamic"),
    (lambda: diffusers.DDIMScheduler(rescale_betas_zero_snr=True), "rescale_betas_zero_snr cannot be honoured"),
    (lambda: diffusers.DDPMScheduler(prediction_type="flow"), "prediction_type must be one of epsilon, sample, v_pr"),
    (
        lambda: diffusers.DDPMScheduler(variance_type="learned_range"),
        "variance_type is 'learned_range', but .* 1 chann",
    ),
    (
        lambda: diffusers.EDMEulerScheduler(prediction_type="v_prediction"),
        "prediction_type must be one of epsilon, got",
    ),
    (lambda: diffusers.CogVideoXDDIMScheduler(), "CogVideoXDDIMScheduler.alphas_cumprod cannot be honoured"),
    (lambda: diffusers.CMStochasticIterativeScheduler(), "scheduler must be one that has betas, or of .*got CMStoch"),
    (lambda: None, "scheduler must be one of diffusers, or the folder that it was saved in, got None"),
]


@pytest.mark.parametrize(("make", "says"), SCHEDULERS)
def test_what_cannot_be_honoured(make, says):
    with pytest.raises(ValueError, match=says):
        from_diffusers(unet(), make())


def test_folders_that_are_none(tmp_path):
    """No folder, no configuration, another class, weights that could run code, a network that is told sigma."""
    folder = saved(tmp_path / "pipe", unet(), diffusers.DDPMScheduler())
    config = folder / "unet" / "config.json"
    good = config.read_text()
    for text, says in (
        ("{", "must be a configuration of diffusers, but it cannot be read"),
        ("[]", "cannot be read"),
        (json.dumps({"_class_name": "DDPMPipeline"}), "must name a network of diffusers .*, got 'DDPMPipeline'"),
        (json.dumps({"_class_name": "__import__"}), "must name a network"),
    ):
        config.write_text(text)
        with pytest.raises(ValueError, match=says):
            from_diffusers(folder)
    config.write_text(good)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="must hold weights as safetensors, which run no code"):
        from_diffusers(folder)
    with pytest.raises(ValueError, match=re.escape("source must be a folder that save_pretrained wrote")):
        from_diffusers(tmp_path / "none")
    with pytest.raises(ValueError, match="source must be one of diffusers, .* got 3"):
        from_diffusers(3)
    with pytest.raises(ValueError, match="time_embedding_type must not be 'fourier' beside betas"):
        from_diffusers(unet(time_embedding_type="fourier"), diffusers.DDPMScheduler())


def test_data_are_asked():
    """Of weights that were never trained nothing is told."""
    with pytest.raises(ValueError, match="must tell more of the noise|predicts must be"):
        from_diffusers(unet(), diffusers.DDPMScheduler(), data=X.repeat(4, 1, 1, 1))
