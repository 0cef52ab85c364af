"""The networks: any size in, the same size out; rows apart; told of noise level and class; every weight used."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from scoresde.nn import MLP, DDPMpp, NCSNpp, UNet, drop_labels
from scoresde.nn.song import BigBlock, Fourier, PixelAttention, Positional, Resample, Shrink
from scoresde.noise import seeded


def awake(net, seed=0):
    """The network with every layer that starts at zero drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    for w in net.parameters():
        if not w.any():
            w.data.normal_(std=0.2, generator=generator)
    return net


SONG = {"ddpm++": DDPMpp, "ncsn++": NCSNpp}


def small(kind, classes=0):
    if kind == "mlp":
        return MLP((2, 4, 4), width=16, depth=2, classes=classes)
    if kind in SONG:
        return SONG[kind]((2, 4, 4), 8, (1, 2), 1, (2,), classes, dropout=0.0)
    return UNet((2, 4, 4), width=8, multipliers=(1, 2), blocks=1, attention=1, classes=classes)


def batch(n=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, 4, 4, generator=generator), torch.randn(n, generator=generator)


kinds = pytest.mark.parametrize("kind", ["mlp", "unet", *SONG])


# shapes


@given(
    size=st.sampled_from([(8, 8), (28, 28), (7, 5), (1, 1), (33, 17), (2, 9), (1, 6), (12,), (7,), (1,), (5, 3, 6)]),
    channels=st.sampled_from([1, 3, 4]),
    levels=st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=3),
    blocks=st.integers(1, 2),
    attention=st.integers(0, 3),
    width=st.sampled_from([1, 4, 6, 10]),
)
def test_unet_returns_its_input_shape(size, channels, levels, blocks, attention, width):
    """Series, images and volumes, of any channels, levels, blocks and attention, at any width: x's shape and dtype."""
    net = awake(UNet((channels, *size), width, levels, blocks, attention, classes=3))
    x = torch.randn(2, channels, *size)
    y = net(x, torch.randn(2), torch.tensor([0, 3]))
    assert y.shape == x.shape and y.dtype == x.dtype and y.std() > 0


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 20), st.integers(1, 3))
def test_mlp_returns_its_input_shape(shape, width, depth):
    """Vectors, series, images and volumes of any size."""
    x = torch.randn(3, *shape)
    y = awake(MLP(shape, width, depth))(x, torch.randn(3))
    assert y.shape == x.shape and y.dtype == x.dtype and y.any()


def test_unet_takes_other_sizes_than_its_own():
    """A U-Net is made for channels, not for a height and width: one network reads images of several sizes."""
    net = awake(UNet((1, 8, 8), width=4, blocks=1))
    for size in [(8, 8), (5, 12), (1, 1)]:
        assert net(torch.randn(2, 1, *size), torch.zeros(2)).shape == (2, 1, *size)


@pytest.mark.parametrize("size", [(12,), (7, 5)], ids=str)
def test_a_side_of_one_is_no_side(size):
    """A series is an image of width 1 to a network whose kernels act along it alone, and an image a volume."""
    flat = awake(UNet((2, *size), width=8, blocks=1, classes=3))
    deep = UNet((2, *size, 1), width=8, blocks=1, classes=3)
    for w, v in zip(deep.parameters(), flat.parameters(), strict=True):
        w.data.zero_() if w.ndim > v.ndim else w.data.copy_(v)
        if w.ndim > v.ndim:
            w.data[..., w.shape[-1] // 2] = v.data
    x, c, label = torch.randn(3, 2, *size), torch.randn(3), torch.tensor([0, 1, 3])
    torch.testing.assert_close(deep(x[..., None], c, label)[..., 0], flat(x, c, label), rtol=1e-4, atol=1e-5)


def test_a_volume_that_is_turned():
    """Turned sides and kernels give the same, turned."""
    net, x, c = awake(UNet((1, 4, 6, 5), width=4, blocks=1)), torch.randn(2, 1, 4, 6, 5), torch.randn(2)
    y = net(x, c)
    for w in net.parameters():
        if w.ndim == 5:
            w.data = w.data.permute(0, 1, 4, 2, 3)
    torch.testing.assert_close(net(x.permute(0, 1, 4, 2, 3), c), y.permute(0, 1, 4, 2, 3), rtol=1e-4, atol=1e-5)


def test_dropout_is_of_training_alone():
    """A share of values is 0 at a step of training, the rest larger: the mean is what evaluation gives where what
    follows is linear, as the last layer of a block is.
    """
    net, (x, c) = awake(UNet((2, 4, 4), width=8, blocks=1, dropout=0.3)), batch()
    block, v = net.down[0].block, torch.randn(5, 32)
    h = net.enter(x)
    with torch.no_grad(), seeded(0):
        drawn = torch.stack([block.train()(h, v) for _ in range(4000)])
        want = block.eval()(h, v)
    assert ((drawn.mean(0) - want).abs() < 5 * drawn.std(0) / 4000**0.5 + 1e-6).all() and drawn.std(0).min() > 0
    assert torch.equal(net.eval()(x, c), net(x, c)) and not torch.equal(net.train()(x, c), net(x, c))


@kinds
def test_other_dtypes(kind):
    """In float64 the network gives what it gives in float32, to rounding of float32."""
    net, (x, c) = awake(small(kind)), batch()
    single = net(x, c)
    double = net.double()(x.double(), c.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4)


# the networks of Song et al.


@given(
    size=st.sampled_from([(8, 8), (28, 28), (7, 5), (1, 1), (33, 17), (2, 9), (1, 6)]),
    channels=st.sampled_from([1, 3]),
    levels=st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=3),
    blocks=st.integers(1, 2),
    kind=st.sampled_from([*SONG]),
    width=st.sampled_from([2, 4, 7]),
)
def test_song_networks_return_their_input_shape(size, channels, levels, blocks, kind, width):
    """Images of any size and channels."""
    net = awake(SONG[kind]((channels, *size), width, levels, blocks, (size[0], 4), classes=3))
    x = torch.randn(2, channels, *size)
    y = net(x, torch.randn(2), torch.tensor([0, 3]))
    assert y.shape == x.shape and y.dtype == x.dtype and y.std() > 0


@pytest.mark.parametrize(
    ("kind", "blocks", "millions"),
    [("ddpm++", 4, 61.8), ("ddpm++", 8, 106.6), ("ncsn++", 4, 62.8), ("ncsn++", 8, 107.6)],
)
def test_published_sizes(kind, blocks, millions):
    """By default they are as large as the networks that the paper trained on CIFAR-10, plain and deep."""
    with torch.device("meta"):
        net = SONG[kind]((3, 32, 32), blocks=blocks)
    assert round(sum(w.numel() for w in net.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize("filtered", [False, True])
def test_resampling(filtered):
    """Halving is a quarter of the adjoint of doubling, and both leave a constant as it is, away from the border; the
    filter, unlike repeated pixels, also takes a slope to that slope.
    """
    down, up = Resample(False, filtered), Resample(True, filtered)
    x, y = torch.randn(2, 3, 10, 6, dtype=torch.float64), torch.randn(2, 3, 5, 3, dtype=torch.float64)
    torch.testing.assert_close((down(x) * y).sum(), (x * up(y)).sum() / 4, rtol=1e-12, atol=0)
    for part in (down, up):
        torch.testing.assert_close(
            part(torch.ones(1, 1, 8, 8))[..., 1:-1, 1:-1],
            torch.ones(1, 1, *[16 if part is up else 4] * 2)[..., 1:-1, 1:-1],
        )
    slope = torch.arange(8.0).expand(1, 1, 8, 8)
    inside = up(slope)[0, 0, 5, 2:-2].diff()
    assert torch.allclose(inside, torch.full((11,), 0.5)) == filtered
    assert down(torch.zeros(1, 1, 7, 5)).shape[2:] == (4, 3)


def test_how_the_clock_is_told():
    """Numbers written out: sines, then cosines; frequencies 1 to 1e-4, or 2 pi times those that were drawn."""
    c = torch.tensor([0.7])
    want = [math.sin(0.7), math.sin(0.7e-4), math.cos(0.7), math.cos(0.7e-4)]
    torch.testing.assert_close(Positional(4)(c), torch.tensor([want]))
    waves = Fourier(4)
    w = waves.bits.view(torch.float32).tolist()
    want = [f(2 * math.pi * 0.7 * v) for f in (math.sin, math.cos) for v in w]
    torch.testing.assert_close(waves(c), torch.tensor([want]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("resample", [None, Resample(False, True)], ids=["as it is", "halved"])
def test_a_block_is_its_formula(resample):
    """Sums are divided by sqrt 2, the clock comes in between the convolutions, and both branches are resampled."""
    block, x, v = awake(BigBlock(4, 4, 6, 0.0, resample)), torch.randn(2, 4, 6, 6), torch.randn(2, 6)
    r = (lambda y: y) if resample is None else resample
    h = block.conv1(r(nn.functional.silu(block.norm1(x)))) + block.told(v)[:, :, None, None]
    want = (block.skip(r(x)) + block.conv2(nn.functional.silu(block.norm2(h)))) / 2**0.5
    torch.testing.assert_close(block(x, v), want)
    assert isinstance(block.skip, nn.Identity) == (resample is None)


def test_attention_is_its_formula():
    """One head of all channels, softmax of q.k/sqrt(C), the sum over sqrt 2."""
    part, x = awake(PixelAttention(8)), torch.randn(2, 8, 3, 5)
    q, k, u = part.qkv(part.norm(x)).flatten(2).chunk(3, 1)
    share = (torch.einsum("bci,bcj->bij", q, k) / 8**0.5).softmax(2)
    y = torch.einsum("bij,bcj->bci", share, u).view(x.shape)
    torch.testing.assert_close(part(x), (x + part.out(y)) / 2**0.5, rtol=1e-4, atol=1e-5)


def test_where_attention_is():
    """At the heights that are named: after every block on the way down, after the last one on the way up; and between
    the two blocks of the bottom.
    """
    net = DDPMpp((1, 32, 32), 4, (1, 1, 1), 2, (16,))
    has = [[stage.attention is not None for stage in part] for part in (net.down, net.bottom, net.up)]
    off, on = False, True
    assert has[0] == [off, off, off, on, on, off, off, off] and has[1] == [off, on, off]
    assert has[2] == [off, off, off, off, off, off, on, off, off, off, off]


def test_how_the_image_is_made_smaller():
    """Smoothed at every pixel, then a convolution at every second: taps are neighbours, and sides are rounded up."""
    part = Shrink(1, 1)
    part.conv.weight.data.zero_()[..., 1, 1] = 1
    part.conv.bias.data.zero_()
    x = torch.randn(1, 1, 8, 6)
    torch.testing.assert_close(part(x), Resample(False, True)(x))
    part.conv.weight.data.zero_()[..., 1, 2] = 1
    along = torch.arange(16.0).expand(1, 1, 16, 16)
    torch.testing.assert_close(part(along)[0, 0, 4, 2:-2], along[0, 0, 0, ::2][2:-2] + 1.5)
    assert part(torch.zeros(1, 1, 7, 1)).shape[2:] == (4, 1)


def test_the_image_is_fed_in_at_every_level():
    """NCSN++ alone hears of the image beside its first convolution: with that at 0 DDPM++ forgets x."""
    for kind, heard in (("ddpm++", False), ("ncsn++", True)):
        net, (x, c) = awake(small(kind)), batch()
        net.enter.weight.data.zero_()
        assert torch.equal(net(x, c), net(-x, c)) != heard


def test_random_frequencies_keep_their_digits():
    """A network in bfloat16 has the frequencies that it had in float32, and they have deviation 16."""
    net = small("ncsn++").bfloat16()
    c, waves = torch.tensor([3.3]), net.embed.waves
    assert torch.equal(waves(c), Fourier.forward(waves, c)) and waves(c).dtype == torch.float32
    w = Fourier(20_000).bits.view(torch.float32)
    assert abs(float(w.std()) - 16) < 4 * 16 / 20_000**0.5 and abs(float(w.mean())) < 4 * 16 / 10_000**0.5


# how they start


@kinds
def test_starts_at_zero(kind):
    """At initialisation the output is exactly 0: a ScoreModel starts from the best answer that knows nothing."""
    x, c = batch()
    y = small(kind, classes=3)(x, c, torch.tensor([0, 1, 2, 3, 0]))
    assert torch.equal(y, torch.zeros_like(x))


@kinds
def test_training_leaves_zero(kind):
    """The zero start is no trap: after three steps of Adam the output depends on x, on c, and on the label."""
    net, (x, c) = small(kind, classes=3), batch()
    label = torch.tensor([0, 1, 2, 3, 0])
    optimiser, target = torch.optim.Adam(net.parameters(), 0.05), torch.randn_like(x)
    for _ in range(3):
        optimiser.zero_grad()
        (net(x, c, label) - target).square().mean().backward()
        optimiser.step()
    y = net(x, c, label)
    for other in [(-x, c, label), (x, c + 1, label), (x, c, (label + 1) % 4)]:
        assert ((net(*other) - y).abs().flatten(1).amax(1) > 1e-5).all()


@kinds
def test_every_parameter_learns(kind):
    """With the zero layers awake, the gradient reaches every parameter, and every row of the class table in use."""
    net, (x, c) = awake(small(kind, classes=3)), batch()
    net(x, c, torch.tensor([0, 1, 2, 3, 0])).square().sum().backward()
    for name, w in net.named_parameters():
        assert w.grad is not None and w.grad.abs().max() > 1e-9, name
    assert (net.embed.label.weight.grad.abs().amax(1) > 0).all()


# rows, noise level, class


@kinds
def test_rows_are_independent(kind):
    """Row i is a function of x_i, c_i and label_i alone: other rows may be anything, or be missing."""
    net, (x, c) = awake(small(kind, classes=3)), batch(6)
    label = torch.tensor([0, 1, 2, 3, 0, 1])
    y = net(x, c, label)
    for i in range(6):
        alone = net(x[i : i + 1], c[i : i + 1], label[i : i + 1])
        torch.testing.assert_close(alone[0], y[i], rtol=1e-5, atol=1e-5)
    other, told, named = 100 * torch.randn_like(x), c + 3, (label + 1) % 4
    other[2], told[2], named[2] = x[2], c[2], label[2]
    torch.testing.assert_close(net(other, told, named)[2], y[2], rtol=1e-5, atol=1e-5)
    x = x.requires_grad_()
    (grad,) = torch.autograd.grad(net(x, c, label)[2].sum(), x)
    assert grad[2].any() and not grad[[0, 1, 3, 4, 5]].any()


@kinds
def test_noise_level_and_class_are_told(kind):
    """A change of c or of the class changes the output of every row; label=None is the index `classes`, no label."""
    net, (x, c) = awake(small(kind, classes=3)), batch()
    answers = [net(x, c, torch.full((5,), k)) for k in range(4)]
    for k in range(4):
        for j in range(k):
            assert ((answers[k] - answers[j]).abs().flatten(1).amax(1) > 1e-4).all()
    assert torch.equal(net(x, c), answers[3])
    for other in (c + 0.1, c + 1, c + 20, -c):  # -c: an embedding by cosines alone would be even in log-SNR
        assert ((net(x, other) - answers[3]).abs().flatten(1).amax(1) > 1e-5).all()


def test_fourier_features():
    """The first layer sees the input, its sines and its cosines, frequency by frequency; and in bfloat16 they are still
    told of what the input says far below its own size.
    """
    x, c = batch()
    plain, fine = awake(small("unet")), UNet((2, 4, 4), 8, (1, 2), 1, 1, fourier=(3.0, 200.0))
    seen = []
    fine.enter.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    rest = {k: v for k, v in plain.state_dict().items() if not k.startswith("enter")}
    assert fine.load_state_dict(rest, strict=False).missing_keys == ["enter.weight", "enter.bias"]
    fine.enter.weight.data.zero_()[:, :2] = plain.enter.weight.data
    fine.enter.bias.data = plain.enter.bias.data
    assert torch.equal(fine(x, c), plain(x, c))
    expected = [x, *((w * x).sin() for w in (3.0, 200.0)), *((w * x).cos() for w in (3.0, 200.0))]
    torch.testing.assert_close(seen[0], torch.cat(expected, 1))
    near = torch.full((1, 2, 4, 4), -1.0)
    with torch.autocast("cpu", torch.bfloat16):
        fine(near, c[:1]), fine(near + 1e-3, c[:1])
    a, b = (s[:, 4:6].bfloat16() for s in seen[-2:])
    assert ((a - b).abs() > 0.01).all()


@pytest.mark.parametrize("kind", ["mlp", "unet", "ddpm++"])
def test_smooth_in_the_noise_level(kind):
    """A step of 1e-3 in c moves the output by about a thousandth of what a step of 1 does: no step index is hashed."""
    net, (x, c) = awake(small(kind)).double(), batch()
    x, c = x.double(), c.double()
    far, near, nearer = ((net(x, c + h) - net(x, c)).norm() for h in (1.0, 1e-3, 1e-4))
    assert near < 0.02 * far
    torch.testing.assert_close(near / nearer, torch.tensor(10.0, dtype=torch.float64), rtol=0.02, atol=0)


# dropped labels


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_share_of_dropped_labels(p):
    """A share p of the labels becomes `classes`, within 4.5 standard errors; the others stay, whatever their value."""
    n, classes = 20_000, 10
    label = torch.arange(n) % classes
    dropped = drop_labels(label, p, classes, torch.Generator().manual_seed(3))
    gone = dropped == classes
    assert abs(float(gone.double().mean()) - p) <= 4.5 * (p * (1 - p) / n) ** 0.5
    assert torch.equal(dropped[~gone], label[~gone]) and dropped.dtype == label.dtype
    assert torch.equal(label, torch.arange(n) % classes)
    for k in range(classes):
        share = float(gone[label == k].double().mean())
        assert abs(share - p) <= 4.5 * (p * (1 - p) / (n / classes)) ** 0.5


# what is refused


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: UNet((1, 4, 4), fourier=(0.0,)), "fourier must be a finite number > 0"),
        (lambda: MLP((0,)), "shape"),
        (lambda: MLP((2.5,)), "shape"),
        (lambda: MLP((2,), width=0), "width"),
        (lambda: MLP((2,), depth=0), "depth"),
        (lambda: MLP((2,), width=8.0), "width"),
        (lambda: MLP((2,), classes=-1), "classes"),
        (lambda: UNet((8,)), "shape"),
        (lambda: DDPMpp((8,)), "shape"),
        (lambda: DDPMpp((1, 8, 8), width=1), "width"),
        (lambda: DDPMpp((1, 8, 8), multipliers=()), "multipliers"),
        (lambda: DDPMpp((1, 8, 8), attention=16), "attention"),
        (lambda: DDPMpp((1, 8, 8), attention=(0,)), "attention"),
        (lambda: NCSNpp((1, 8, 8), blocks=0), "blocks"),
        (lambda: NCSNpp((1, 8, 8), dropout=-0.1), "dropout"),
        (lambda: UNet((1, 8, 8, 8, 8)), "shape"),
        (lambda: UNet((1, 8, 8), dropout=1.0), "dropout"),
        (lambda: UNet((0, 8, 8)), "shape"),
        (lambda: UNet((1, 8, 0)), "shape"),
        (lambda: UNet((1, 8, 8), width=0), "width"),
        (lambda: UNet((1, 8, 8), multipliers=()), "multipliers"),
        (lambda: UNet((1, 8, 8), multipliers=(1, 0)), "multipliers"),
        (lambda: UNet((1, 8, 8), multipliers=(1, 1.5)), "multipliers"),
        (lambda: UNet((1, 8, 8), blocks=0), "blocks"),
        (lambda: UNet((1, 8, 8), attention=-1), "attention"),
        (lambda: UNet((1, 8, 8), classes=-1), "classes"),
        (lambda: UNet((1, 8, 8), classes=2.0), "classes"),
        (lambda: drop_labels(torch.zeros(3, dtype=torch.long), 1.5, 10), "p must"),
        (lambda: drop_labels(torch.zeros(3, dtype=torch.long), -0.1, 10), "p must"),
        (lambda: drop_labels(torch.zeros(3, dtype=torch.long), float("nan"), 10), "p must"),
    ],
)
def test_bad_sizes(make, match):
    """Sizes that are no whole numbers of at least 1, and shares outside [0, 1], are named."""
    with pytest.raises(ValueError, match=match):
        make()


@kinds
def test_bad_labels(kind):
    """A label for a network without classes, or one label for a whole batch, is refused, not ignored or broadcast."""
    x, c = batch()
    with pytest.raises(ValueError, match="without classes"):
        small(kind)(x, c, torch.zeros(5, dtype=torch.long))
    for label in (torch.tensor(1), torch.tensor([1]), torch.zeros(5, 1, dtype=torch.long)):
        with pytest.raises(ValueError, match="label must have shape"):
            small(kind, classes=3)(x, c, label)


@pytest.mark.parametrize("label", [[-1, 0], [0, 4], [0.0, 1.0], [True, False]], ids=str)
def test_labels_are_whole_numbers_of_a_class(label):
    """0..classes, the last of which is no label."""
    net = MLP((2,), 8, 1, classes=3)
    with pytest.raises(ValueError, match="^label must"):
        net(torch.zeros(2, 2), torch.zeros(2), torch.tensor(label))
