"""What every command takes. Nothing here needs torch, so that help comes at once."""

from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path
from typing import Any

from ..files import all_shipped, shipped

MODEL = "folder of a checkpoint, one of `scoresde models`, or package.module:function that returns a Checkpoint"
LABEL = "the class, if the network has classes: its name, or its number from 0 on"
OWN_NET = "what makes the network, if the checkpoint cannot: package.module:function"
INVERSE = ("one-of-four", "length-of-four", "upper-half", "blocks")
OWN_STEP = "a step of your own besides: package.module:Class"
CHOICES = ("step", "sde", "grid", "net", "data", "law", "method", "trace", "weight", "times")
"""Options whose values are parts of the library, which `--help NAME` lists."""
OWN = {("bench", "method")}
"""Those that take what is your own alone."""


class Rare(str):
    """The help of an option that `--help-all` alone shows."""


def demo(parser: ArgumentParser) -> None:
    """Train on handwritten digits, sample with every family of sampler, and write a report: about three minutes. The
    folder gets the checkpoint, pictures, report.md and report.html. An interrupted demo goes on when called again.
    """
    parser.add_argument("--steps", metavar="N", type=int, default=1500, help="training steps")
    shared(parser, "scoresde-demo")


def train(parser: ArgumentParser) -> None:
    """Train a score network or a --classifier; called again, with as many steps or more, a training goes on."""
    add = parser.add_argument
    add("data", help="digits, Ring(modes=8), moons, ..., FILE.npy, FILE.csv, a folder of images")
    add("--recipe", metavar="NAME", help="mnist-vp, cifar10-ve-likelihood, ...: what is not said below")
    add("--sde", metavar="SDE", help="vp, which is the default, VE(sigma_max=20), edm, ..., package.module:Class")
    add("--net", metavar="NET", help="UNet(width=32), MLP(width=256), package.module:function of (shape, classes)")
    add("--init", metavar="MODEL", type=model, help="begin with the network of another checkpoint")
    add("--weight", metavar="W", help="of the loss: Simple, MinSNR(5), MaximumLikelihood; 1 on the network's output")
    add("--times", metavar="LAW", help="LogNormal(-1.2, 1.2), which is the default, UniformLogSNR, UniformTime")
    add("--steps", metavar="N", type=int, help="optimiser steps (5000)")
    add("--batch", metavar="N", type=int, help="samples a step, over all processes; 64 of many images (32)")
    add("--lr", metavar="X", type=float, help="learning rate of Adam; less for a wide network (0.004)")
    add("--warmup", metavar="N", type=int, help=Rare("steps over which it rises from 0 (100)"))
    add("--decay", metavar="X", type=float, help=Rare("share of the steps, at the end, over which it falls to 0 (0.5)"))
    add("--beta2", metavar="X", type=float, help=Rare("Adam's memory of squared gradients (0.99)"))
    add("--clip", metavar="X", type=float, help=Rare("largest norm of a gradient (1.0)"))
    add("--ema", metavar="X", type=float, help=Rare("half-life of averages, in units of the steps so far (0.05)"))
    add("--label-dropout", metavar="X", type=float, help=Rare("share of labels that are hidden (0.1)"))
    add("--not-stratified", action="store_true", help=Rare("draw the times of a batch independently"))
    add("--snapshots", metavar="N", type=int, help=Rare("averages to keep on the way, for `scoresde average` (0)"))
    add("--weight-decay", metavar="X", type=float, help=Rare("AdamW's, of weights of two and more dimensions (0)"))
    add("--accumulate", metavar="N", type=int, help=Rare("parts of a batch in the network one after the other (1)"))
    add("--flips", action="store_true", default=None, help="show images and mirror images equally often")
    kinds = ("float32", "bfloat16", "float16")
    add("--precision", metavar="P", choices=kinds, help="what the network is computed in: bfloat16, float16 (float32)")
    add("--compile", action="store_true", help="compile the network by torch.compile")
    add(
        "--shard",
        action="store_true",
        help="share weights out too: torchrun --nproc-per-node 2 -m scoresde -- train digits --shard",
    )
    add("--views", metavar="N", type=int, help="pictures of samples on the way (8)")
    dry(parser)
    add("--save-every", metavar="S", type=float, default=60.0, help=Rare("seconds between checkpoints (60)"))
    add("--conditional", action="store_true", help="tell the network the labels, if the data have them")
    add(
        "--classifier",
        action="store_true",
        help="train p(label | noisy sample), which guides a score; by LogNormal(0, 2)",
    )
    shared(parser, "runs/model")


def average(parser: ArgumentParser) -> None:
    """Average the weights of a training that kept --snapshots over another half-life, after it has ended: a long one
    for samples, a short one where much is learnt at the end. The checkpoint is written beside, and says what it is.
    """
    add = parser.add_argument
    add("model", type=model, help="the folder of a checkpoint that was trained with --snapshots")
    add("--ema", metavar="X", type=float, required=True, help="half-life, in units of the steps until then")
    add("--step", metavar="N", type=int, help="the step at which the average is taken (the last)")
    add("--out", metavar="PATH", type=place, default=Path("runs/average"), help="the folder for it (runs/average)")


def sample(parser: ArgumentParser) -> None:
    """Draw samples from a checkpoint: which process (--sde, --eta), on which times (--grid, --steps), by which steps
    (--step, twice for a corrector and a predictor). By default 20 network calls on the probability flow; DDPM is --step
    Ancestral --eta 1 --steps 100 --grid uniform, annealed Langevin dynamics a corrector alone. An interrupted run goes
    on when called again. Several processes share the batches out, and the samples are the same.
    """
    add = parser.add_argument
    add("model", type=model, help=MODEL)
    add("--n", metavar="N", type=int, default=64, help="how many samples")
    add("--step", metavar="S", action="append", help="UniPC(3), Flow(Dopri5()), Langevin(SNR(0.3), n=5), module:Class")
    add("--steps", metavar="N", type=int, help="intervals of the grid (20; 1 where a step chooses its own)")
    add("--grid", metavar="G", help="reference, which is the default, uniform, quadratic, log_snr, karras(rho=7)")
    add("--end", metavar="T", type=float, help=Rare("the last time (the process's own t_min)"))
    said = "0 for the flow, 1 for the reverse SDE (0; 1 for a step that is of the SDE)"
    add("--eta", metavar="X", type=float, help=said)
    add("--sde", metavar="SDE", help="another process: VE(sigma_min=0.02, sigma_max=20), ..., package.module:Class")
    add("--tuned", metavar="FILE", type=place, help="what `scoresde tune` wrote: its step, grid and process")
    guidance(parser)
    add("--temperature", metavar="T", type=float, help="of Gaussian data p^(1/T): less varied below 1, more above it")
    dry(parser)
    add("--no-denoise", action="store_true", help="end without the mean of the data given the last state")
    add("--batch", metavar="N", type=int, default=256, help="samples drawn together; they do not depend on it")
    add("--net", metavar="NET", help=Rare(OWN_NET))
    shared(parser, "runs/samples")


def inpaint(parser: ArgumentParser) -> None:
    """Draw what is missing of images, whose other pixels are known: samples of p(x | y) under a checkpoint, which need
    not have been trained for it. What was measured, samples, their mean and their deviation go to .npy files, and a row
    of each image to picture.png. An interrupted run goes on when called again.
    """
    measured(parser)
    add = parser.add_argument
    add("--keep", metavar="K", help="upper, lower, left, right, border, or a share such as 0.3, at random (upper)")
    add("--mask", metavar="FILE", type=place, help="an image of the model's size that is white where pixels are known")
    sampled(parser, "runs/inpaint")


def colorize(parser: ArgumentParser) -> None:
    """Draw the colours of grey images: samples of p(x | y) under a checkpoint of images of three channels, whose mean
    over channels is known. Files as `scoresde inpaint` writes them; a grey --image is what was measured,
    with --std of noise in it.
    """
    measured(parser)
    sampled(parser, "runs/colorize")


def superres(parser: ArgumentParser) -> None:
    """Draw the details of small images: samples of p(x | y) under a checkpoint, of which means over blocks of pixels
    are known. Files as `scoresde inpaint` writes them; an --image that is already small is what was measured, with
    --std of noise in it.
    """
    measured(parser)
    parser.add_argument("--factor", metavar="K", type=int, default=2, help="blocks of K x K pixels (2)")
    sampled(parser, "runs/superres")


def interpolate(parser: ArgumentParser) -> None:
    """Draw a path from one image to another, whose states are samples of a checkpoint: latents on the flow, joined on a
    great circle. How far the flow brings each of the two back from where it began is said beside.
    """
    add = parser.add_argument
    add("model", type=model, help=MODEL)
    add("--images", metavar="I", type=int, nargs=2, help="the numbers of two images that are held out (0 1)")
    add("--image", metavar="FILE", type=place, nargs=2, help="instead, two image files of the model's shape")
    add("--data", metavar="DATA", help="digits, FILE.npy, a folder, ... (what the model was trained on, if bundled)")
    add("--n", metavar="N", type=int, default=8, help="states, both ends among them (8)")
    add("--method", metavar="M", default="Adams(40)", help="of the flow: Dopri5(1e-6, 1e-6), ... (Adams(40))")
    add("--label", metavar="K", help=LABEL)
    add("--net", metavar="NET", help=OWN_NET)
    shared(parser, "runs/interpolate")


def tune(parser: ArgumentParser) -> None:
    """Fit a solver to one model, of its probability flow or, with --eta, of a process with noise: grid, residual size
    and weights from its own trajectories. The result is JSON, which `scoresde sample MODEL --tuned FILE` takes; where a
    method without a fit is better, that is what is written. Without a MODEL the score is that of an exact law.
    """
    add = parser.add_argument
    add("model", type=model, nargs="?", help=MODEL)
    add("--law", metavar="LAW", help="modes, lattice, digitclasses, package.module:Class (modes)")
    add("--sde", metavar="SDE", help="another process (a checkpoint's own, and vp for a law)")
    add("--nfe", metavar="N", type=int, default=10, help="network calls of the solver")
    add("--eta", metavar="X", type=float, default=0.0, help="0 for the flow, up to 1 for the reverse SDE (0)")
    add("--pilots", metavar="N", type=int, default=64, help="trajectories in each of three sets: fit, decide, report")
    add("--evaluations", metavar="N", type=int, default=150_000, help=Rare("of the network for a sample (150000)"))
    guidance(parser, several=True)
    dry(parser)
    add("--net", metavar="NET", help=Rare(OWN_NET))
    shared(parser, "runs/tuned.json", "the file to write")


def likelihood(parser: ArgumentParser) -> None:
    """The likelihood of data under a checkpoint, along its probability flow, with an error budget and two bounds: grey
    levels in bits/dim, continuous data in nats/dim, -log p / d. The density is that of the model at t = t_min. One line
    a sample goes to likelihood.jsonl, and an interrupted run goes on when called again. Several processes share the
    samples out, and the lines are the same: torchrun --nproc-per-node 2 -m scoresde -- likelihood MODEL --n 4 (without
    the -- torchrun takes --n for its own).
    """
    add = parser.add_argument
    add("model", type=model, nargs="?", help=MODEL)
    add("--data", metavar="DATA", help="digits, FILE.npy, a folder, ... (what the model was trained on, if bundled)")
    add("--law", metavar="LAW", help="instead of a model, an exact law, whose true density is shown: modes, ...")
    add("--sde", metavar="SDE", help="the process of a law (vp)")
    add("--split", choices=("held-out", "train"), default="held-out", help="which part of the data")
    add("--n", metavar="N", type=int, help="how many samples, from the first on (all, and 200 of a law)")
    add("--method", metavar="M", help="AsNeeded(0.005), Adams(40), Dopri5(1e-6, 1e-6), ... (by dimension)")
    add("--trace", metavar="T", help="Exact, Hutchinson(2), HutchPP(4), beside Adams also Hadamard(4) (by dimension)")
    kinds = ("uniform", "truncated-normal", "decoded")
    add("--label", metavar="K", help=f"of all samples, {LABEL}")
    add("--own-labels", action="store_true", help="tell the network each sample's own label, if the data have them")
    add("--dequantization", choices=kinds, default="uniform", help="how grey levels become continuous")
    dry(parser)
    add("--draws", metavar="N", type=int, default=1, help="draws of it inside the logarithm; many need --trace Exact")
    add("--fitted-prior", action="store_true", help="the prior fitted to the training data for N(0, sigma_T^2 I)")
    add("--terms", metavar="N", type=int, default=8, help=Rare("times a sample for each of the two bounds; 0 for none"))
    add("--chain", metavar="N", type=int, default=1000, help=Rare("steps of the chain, unless the model has one"))
    add("--batch", metavar="N", type=int, default=128, help="samples solved together; they do not depend on it")
    add("--net", metavar="NET", help=Rare(OWN_NET))
    shared(parser, "runs/likelihood")


def evaluate(parser: ArgumentParser) -> None:
    """Say how good samples are beside data that were held out: Frechet, kernel, energy and sliced Wasserstein distance,
    precision, recall, density, coverage, a test of whether they can be told apart, and what was learned by heart; each
    with its standard error, and with what as many training samples have.
    """
    add = parser.add_argument
    add("samples", type=place, help="a .npy file, or the folder that `scoresde sample` wrote")
    add("data", help="digits, FILE.npy, a folder, ...: what the model was trained on")
    add("--features", metavar="F", help="classifier, as of images with labels, numbers, package.module:function of x")
    add("--n", metavar="N", type=int, help="how many of the samples (all)")
    dry(parser)
    shared(parser, "runs/quality.json", "the file to write")


def compare(parser: ArgumentParser) -> None:
    """Compare DDPM, annealed Langevin, predictor-corrector, DDIM, ... as discretisations of one SDE, from the same
    starting points. Without a MODEL the score is that of an exact law, and distances are to that law at t = t_min,
    where all samplers stop; with one they are to held-out data. One line a sampler and budget goes to results.jsonl,
    and to laws.jsonl one of its law on a line, which is computed without samples; everything to report.html. An
    interrupted run goes on when called again.
    """
    add = parser.add_argument
    add("model", type=model, nargs="?", help=MODEL)
    add("--data", metavar="DATA", help="digits, FILE.npy, a folder, ... (what the model was trained on, if bundled)")
    add("--law", metavar="LAW", help="Modes(n=8), lattice, digitclasses, package.module:Class (modes)")
    add("--sde", metavar="SDE", help="another process (a checkpoint's own, and vp for a law)")
    dry(parser)
    add("--nfe", metavar="N", nargs="+", type=int, help="budgets of network calls (20 50 100, for a law also 200 500)")
    add("--n", metavar="N", type=int, help="samples (4000 of a law, else as many as are held out, at most 359)")
    add("--grid", choices=("uniform", "quadratic", "log_snr", "karras", "reference"), default="log_snr", help="times")
    add("--r", metavar="X", type=float, default=0.16, help=Rare("signal-to-noise ratio of a predictor's corrector"))
    add("--corrections", metavar="N", type=int, default=5, help=Rare("steps of annealed Langevin dynamics a level"))
    add("--step", metavar="S", action="append", default=[], help=OWN_STEP)
    add("--eta", metavar="X", type=float, default=1.0, help="of its process")
    add("--batch", metavar="N", type=int, default=4096, help="samples drawn together; they do not depend on it")
    add("--net", metavar="NET", help=Rare(OWN_NET))
    shared(parser, "runs/compare")


def bench(parser: ArgumentParser) -> None:
    """Measure solvers against exact truth: those of the flow by where they end, against the same flow solved to 1e-10,
    those of the reverse SDE by how far their samples are from fresh exact ones; with --inverse, methods for inverse
    problems against exact posteriors. One line a cell goes to results.jsonl, and everything to report.html; an
    interrupted run goes on when called again.
    """
    add = parser.add_argument
    problems = ("modes", "lattice", "digits", "memorised", "model", *INVERSE)
    add("--inverse", action="store_true", help=f"{', '.join(INVERSE)}: 2000 samples by --nfe 50 and 200 steps")
    add("--method", metavar="F", action="append", default=[], help="of these, your own: package.module:function")
    laws = "laws (modes digits; all if --full), or model; the others are lattice and memorised"
    add("--problems", metavar="NAME", nargs="+", choices=problems, help=laws)
    add("--model", metavar="DIR", type=model, help="the folder of a checkpoint, for the problem `model`")
    add("--data", metavar="DATA", help="digits, FILE.npy, a folder, ... (what the model was trained on, if bundled)")
    add("--processes", nargs="+", choices=("vp", "ve", "subvp", "cosine", "flow", "edm"), help="(vp)")
    add("--sde", metavar="SDE", help="instead of these, one process: VE(sigma_max=20), ..., package.module:Class")
    add("--nfe", metavar="N", nargs="+", type=int, help="budgets for the flow (6 10 20)")
    add("--nfe-sde", metavar="N", nargs="+", type=int, help="budgets for the reverse SDE (10 20 50)")
    add("--only", metavar="NAME", nargs="+", help="the solvers to run, as the report names them (all)")
    add("--step", metavar="S", action="append", default=[], help=OWN_STEP)
    add("--eta", metavar="X", type=float, help=Rare("of its process (0; 1 for a step that is of the SDE)"))
    add("--n", metavar="N", type=int, help="starts of the flow (128, or 384 if --full)")
    add("--n-sde", metavar="N", type=int, help="samples of the reverse SDE (1000, or 4000 if --full)")
    dry(parser)
    add("--full", action="store_true", help="all laws, three processes, more budgets and samples")
    add("--net", metavar="NET", help=Rare(OWN_NET))
    shared(parser, "runs/bench")


def explain(parser: ArgumentParser) -> None:
    """Write one HTML page that plays DDPM, annealed Langevin, predictor-corrector, DDIM and the probability flow from
    one start, with the noise of one Brownian path, beside their exact errors. The page needs no network and no server;
    all of its numbers are computed here, in a minute or two. What is at --out is replaced if this command wrote it.
    """
    add = parser.add_argument
    add("--particles", metavar="N", type=int, default=1024, help="particles that errors are measured with (1024)")
    add("--shown", metavar="N", type=int, default=256, help="of these, particles that are drawn (256)")
    add("--seed", metavar="N", type=int, default=0, help="of everything random: the same seed, the same page")
    add("--out", metavar="PATH", type=place, default=Path("runs/explain.html"), help="the file (runs/explain.html)")


def fetch(parser: ArgumentParser) -> None:
    """Fetch data as they are published, mnist or fashion-mnist, into a folder that `scoresde train` takes. Files that
    are there and right are not fetched again, and a download that broke off goes on.
    """
    add = parser.add_argument
    add("data", help="mnist or fashion-mnist")
    add("--mirror", metavar="URL", action="append", help="a folder on the web that holds the files (those known)")
    add("--out", metavar="PATH", type=place, default=Path("runs/data"), help="the folder for the files (runs/data)")


def models(parser: ArgumentParser) -> None:
    """List the trained models that come with the library, which every command takes by name: their process, the shape
    of a sample, how they were trained, and how good they are on data that were held out.
    """
    parser.add_argument("--commands", action="store_true", help="show the command that trained each")


def cite(parser: ArgumentParser) -> None:
    """Print BibTeX of this package and of the works that a run rests on: those that the docstrings name of all that the
    folder of a checkpoint or of results tells of, or of a step, a process or another part that is typed.
    """
    said = "a folder, FILE.json of `scoresde tune`, UniPC(3), VE, Dopri5, package.module:Class"
    parser.add_argument("used", nargs="*", help=said)


def completion(parser: ArgumentParser) -> None:
    """Print what lets a shell complete commands and options: eval "$(scoresde completion bash)" in ~/.bashrc, and the
    same with zsh in ~/.zshrc. It needs pip install 'scoresde[shell]'.
    """
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell that is to complete")


def model(text: str) -> Path:
    """A folder that was typed, or else what comes with the library under that name."""
    path = place(text)
    return shipped(text) if text in all_shipped() and not path.exists() else path


def place(text: str) -> Path:
    """A path that was typed. Raises ArgumentTypeError for none: `Path("")` would be the current folder."""
    if not text.strip() or "\0" in text:
        raise ArgumentTypeError("it must be a path, got nothing")
    return Path(text)


def measured(parser: ArgumentParser) -> None:
    """Of what something was measured."""
    add = parser.add_argument
    add("model", type=model, help=MODEL)
    add("--images", metavar="N", type=int, help="how many images that are held out, from the first on (4)")
    add("--image", metavar="FILE", type=place, help="instead of these, one image file of the model's shape")
    add("--data", metavar="DATA", help="digits, FILE.npy, a folder, ... (what the model was trained on, if bundled)")


def sampled(parser: ArgumentParser, out: str) -> None:
    """How samples given that are drawn."""
    add = parser.add_argument
    add(
        "--std",
        metavar="X",
        type=float,
        default=0.0,
        help="deviation of noise in y; grey levels go from -1 to 1 (0)",
    )
    add("--n", metavar="N", type=int, default=8, help="samples for each image (8)")
    add("--method", metavar="M", default="pigdm", help="mmps, ddnm, diffpir(weight=2), DPS(zeta=0.5), module:f (pigdm)")
    add("--steps", metavar="N", type=int, default=200, help="of DDPM, the reverse SDE (200)")
    dry(parser)
    add("--label", metavar="K", help=LABEL)
    add("--batch", metavar="N", type=int, help="images drawn together; samples do not depend on it (256 samples)")
    add("--net", metavar="NET", help=OWN_NET)
    shared(parser, out)


def dry(parser: ArgumentParser) -> None:
    """Of what takes long."""
    parser.add_argument("--dry-run", action="store_true", help="check all, say what would be done, and write nothing")


def guidance(parser: ArgumentParser, several: bool = False) -> None:
    """What a network with classes is told."""
    add = parser.add_argument
    many: dict[str, Any] = {"nargs": "+"} if several else {}
    add("--label", metavar="K", help=f"{LABEL}{', or several, or all' if several else ''}", **many)
    add("--classifier", metavar="DIR", type=model, help="guide by one that `scoresde train --classifier` made")
    said = f"towards the label; 1 is none, or the classifier as it is (1){', or several' if several else ''}"
    add("--guidance", metavar="W", type=float, help=said, **many)
    add("--interval", metavar="X", type=float, nargs=2, help="noise levels sigma/alpha that it is kept to (all)")


def shared(parser: ArgumentParser, out: str, what: str = "the folder for what is written") -> None:
    """The options of every command."""
    add = parser.add_argument
    add("--seed", metavar="N", type=int, default=0, help="of everything random: the same seed, the same result")
    add("--device", metavar="D", default="auto", help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one")
    add("--out", metavar="PATH", type=place, default=Path(out), help=f"{what} ({out})")


EVERY = (
    demo, train, average, sample, inpaint, colorize, superres, interpolate, evaluate, tune, likelihood, compare, bench,
    explain, fetch, models, cite, completion,
)  # fmt: skip
COMMANDS = {command.__name__: command for command in EVERY}
