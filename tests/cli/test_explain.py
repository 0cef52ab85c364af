"""The page of `scoresde explain` holds what the library computes, needs nothing else, and draws just that."""

import base64
import json
import re
import shutil
import zlib
from dataclasses import dataclass
from functools import partial
from time import monotonic

import numpy as np
import pytest
import torch

from scoresde import VP, Flow, exact, trajectory
from scoresde.brownian import Path
from scoresde.cli import explain, main
from scoresde.lab import Modes, Peaks, Problem, sliced_wasserstein
from scoresde.lab.explained import LEVELS, Packing
from scoresde.lab.story import DRAWS, UNDER, Scene
from scoresde.model import Counted
from scoresde.noise import seeds
from scoresde.ode import Dopri5

STEPS, PARTICLES, SHOWN, EXACT, DIRECTIONS, SEED = (5, 10, 20), 96, 16, 64, 4, 3
TOLD = {"plane": Modes(3, 0.1), "line": Peaks()}  # three: to exchange the coordinates changes the law
NAMES = [f"{law}/{process}" for law in TOLD for process in UNDER]
SMALL = partial(Scene, steps=STEPS, exact=EXACT, directions=DIRECTIONS)


def write_page(file, seed=SEED, **other):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"Scene": SMALL, "TOLD": TOLD, **other}.items():
            patch.setattr(explain, name, value)
        sizes = ("--particles", str(PARTICLES), "--shown", str(SHOWN))
        return main(["explain", *sizes, "--seed", str(seed), "--out", str(file)])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A page of few particles."""
    path = tmp_path_factory.mktemp("explain") / "new" / "page.html"
    assert write_page(path) == 0
    return path


def inside(text, name):
    return re.search(rf'<script [^>]*id="{name}">(.*?)</script>', text, re.S)[1]


def unpacked(index, content):
    """The arrays of an index, by the words of the module that packs them."""
    found = {}
    for name, where in index.items():
        n, size, at = int(np.prod(where["shape"])), where["bytes"], where["at"]
        planes = np.frombuffer(content, np.uint8, n * size, at).reshape(size, n).astype(np.int64)
        change = sum(plane * 256**k for k, plane in enumerate(planes)).reshape(where["shape"])
        found[name] = np.cumsum(change, axis=0) % 256**size
    return found


@pytest.fixture(scope="module")
def story(file):
    return json.loads(inside(file.read_text(), "story"))


@pytest.fixture(scope="module")
def arrays(file, story):
    return unpacked(story["arrays"], zlib.decompress(base64.b64decode(inside(file.read_text(), "numbers"))))


def scene(name):
    law, process = name.split("/")
    return SMALL(TOLD[law], UNDER[process], PARTICLES, SHOWN, seed=SEED)


def again(begin, code, counted=False):
    """What the lines in the page give when typed: the states at the times of the grid, and the calls until each."""
    names = {}
    exec(begin, names)
    names["score"] = score = Counted(names["score"])
    states, nfe = [], []
    for x in eval(code, names):
        states.append(x)
        nfe.append(score.nfe)
    if code.count("Ancestral") + code.count("Flow") == 0:  # the first time is visited before the others
        del states[1], nfe[1]
    return torch.stack(states), nfe


def data(values, width):
    """Whole numbers of a window in the data's units."""
    return (2 * values / LEVELS - 1) * np.asarray(width)[:, None, None]


# the file


def test_the_page_needs_nothing(file):
    """It names no address, loads nothing, has its parts filled in, and stands alone in its folder."""
    text = file.read_text()
    assert not re.search(r"https?:|//[a-z]+\.[a-z]|@import|url\(|<link|<iframe|<img|\bsrc=|\bhref=|{{", text)
    assert [f.name for f in file.parent.iterdir()] == [file.name]
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text and "prefers-reduced-motion" in text


def test_the_same_seed_gives_the_same_page(tmp_path, capsys):
    """To the byte, in place of an earlier page; another seed gives another. What is said of its size is true."""
    made = []
    for seed in (1, 0, 0):
        few = {"TOLD": {"line": Peaks()}, "UNDER": {"vp": VP()}, "Scene": partial(SMALL, steps=(2, 4))}
        assert write_page(tmp_path / "page.html", seed, **few) == 0
        made.append((tmp_path / "page.html").read_bytes())
    assert made[0] != made[1] == made[2]
    assert f"{len(made[2]) / 1e6:.1f} MB" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("--particles", "0"), "particles must"),
        (("--particles", "8", "--shown", "9"), "shown must"),
        (("--seed", "-1"), "seed must"),
        (("--out", "FOLDER"), "out must be a file"),
        (("--out", "OTHER"), "out must be new, or a page of this command"),
    ],
)
def test_what_is_refused(args, complaint, tmp_path, capsys):
    """One line, before any work, and nothing is written."""
    other = tmp_path / "other.html"
    other.write_text("mine")
    places = {"FOLDER": str(tmp_path), "OTHER": str(other)}
    args = [places.get(word, word) for word in args]
    out = [] if "--out" in args else ["--out", str(tmp_path / "new.html")]
    assert main(["explain", *args, *out]) == 2
    said = capsys.readouterr().err
    assert said.startswith("scoresde: ") and complaint in said and said.count("\n") == 1
    assert [f.name for f in tmp_path.iterdir()] == ["other.html"] and other.read_text() == "mine"


def test_packing():
    """Arrays of 8 and 16 bits, of whatever values and shapes, are told by what is packed."""
    rng, packing = np.random.default_rng(0), Packing()
    given = {
        "a": rng.integers(0, 2**16, (5, 3, 2)).astype(np.uint16),
        "b": rng.integers(0, 2**8, (4, 7)).astype(np.uint8),
        "c": rng.integers(0, 2**16, (1, 1)).astype(np.uint16),
    }
    for name, values in given.items():
        packing.add(name, values)
    found = unpacked(packing.index, zlib.decompress(base64.b64decode(packing.text())))
    assert all(np.array_equal(found[name], values) for name, values in given.items())


# its numbers

RUNS = ("ancestral/1/20", "ancestral/0.5/5", "ancestral/0/10", "langevin/small/5", "corrected/large/10", "flow/20")


@pytest.mark.parametrize("name", NAMES)
def test_the_lines_in_the_page_give_its_pictures(name, story, arrays):
    """The code beside a sampler, typed, gives the stored states, to half a level of their window, and the stored number
    of calls; all samplers have one start.
    """
    told, starts = story["scenes"][name], []
    for key in RUNS:
        run = told["runs"][key]
        states, nfe = again(told["code"], run["code"])
        want = states[:, :SHOWN].numpy()
        width = np.asarray(told["width"])[run["frames"]]
        shown = data(arrays[f"{name}/{key}"], width)
        w = width[:, None, None]
        assert (np.abs(shown - want.clip(-w, w)) <= (0.5 / LEVELS + 1e-6) * 2 * w).all(), key
        assert nfe == run["nfe"] and len(run["frames"]) == int(key.split("/")[-1]) + 1
        starts.append(states[0])
    assert all(start.equal(starts[0]) for start in starts)
    assert len({arrays[f"{name}/{key}"][0].tobytes() for key in told["runs"]}) == 1
    assert len(told["runs"]) == 9 * len(STEPS) + 1


@pytest.mark.parametrize("name", NAMES)
def test_calls(name, story):
    """One a predictor's step, one a correction, four a step of Runge and Kutta."""
    for key, run in story["scenes"][name]["runs"].items():
        way, *_, n = key.split("/")
        k = np.arange(int(n) + 1)
        want = {"ancestral": k, "corrected": 2 * k, "flow": 4 * k, "langevin": np.where(k > 0, 5 * (k + 1), 0)}[way]
        assert run["nfe"] == want.tolist(), key


@pytest.mark.parametrize("name", NAMES)
def test_distances(name, story):
    """They are those to exact samples at the time of the state, and stand beside what exact samples have."""
    told, own = story["scenes"][name], scene(name)
    ts, directions = own.times(20), DIRECTIONS if told["d"] == 2 else 1
    drawn = lambda n, frame, seed: own.score.sample(n, ts[frame], torch.Generator().manual_seed(seed))  # noqa: E731
    truth = lambda frame: drawn(EXACT, frame, seeds(SEED, 8)[3])  # noqa: E731
    for key in RUNS:
        run = told["runs"][key]
        states, _ = again(told["code"], run["code"])
        assert run["measured"] == run["frames"]
        for k in (0, len(states) // 2, len(states) - 1):
            frame = run["measured"][k]
            assert float(told["t"][frame]) == pytest.approx(float(ts[frame]), rel=1e-3)
            want = sliced_wasserstein(states[k], truth(frame), directions)
            assert run["distance"][k] == pytest.approx(want, rel=1e-3)
    for k in (0, 10, 20):
        frame = told["measured"][k]
        alone = [
            sliced_wasserstein(drawn(PARTICLES, frame, s), truth(frame), directions) for s in seeds(SEED, DRAWS, 8)
        ]
        want = [sum(alone) / DRAWS, min(alone), max(alone)]
        assert [told[key][k] for key in ("floor", "least", "most")] == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_off_the_flow(name, story):
    """The root mean square from the flow, solved anew; only what follows the flow is told it."""
    told, own = story["scenes"][name], scene(name)
    q = own.sde.reverse(own.score, 0.0)
    flow = torch.stack(list(trajectory(q, own.x_T[:SHOWN], own.times(20), Flow(Dopri5(1e-10, 1e-10)))))
    for key, run in told["runs"].items():
        if not key.startswith(("ancestral/0/", "flow")):
            assert run["off"] == []
            continue
        states, _ = again(told["code"], run["code"])
        off = (states[:, :SHOWN] - flow[run["frames"]]).square().mean((1, 2)).sqrt()
        assert run["off"] == pytest.approx(off.tolist(), rel=1e-3, abs=1e-7), key
    ends = [told["runs"][f"ancestral/0/{n}"]["off"][-1] for n in STEPS]
    assert ends[0] > ends[1] > ends[2] > 50 * told["runs"]["flow/20"]["off"][-1]


@pytest.mark.parametrize("name", NAMES)
def test_one_brownian_path(name):
    """Its increments over the intervals of few steps are the sums of those over the intervals of many; it is the
    library's path; and draws without an interval begin anew with each run.
    """
    own = scene(name)
    noise, x = own.noise.fresh(), own.x_T
    path = Path(0.0, own.sde.T, tuple(x.shape), seeds(SEED, 8)[1])
    step = lambda t, s: (t - s).sqrt() * noise(x, t, s)  # noqa: E731
    fine = own.times(20)
    dW = torch.stack([step(t, s) for t, s in zip(fine, fine[1:])])
    for n in (5, 10):
        coarse = own.times(n)
        sums = dW.unflatten(0, (n, 20 // n)).sum(1)
        for t, s, total in zip(coarse, coarse[1:], sums):
            assert torch.allclose(step(t, s), total, atol=1e-6)
            assert path(x, t, s).equal(noise(x, t, s))
    t = fine[3]
    again = own.noise.fresh()
    first, second = noise(x, t, t), noise(x, t, t)
    assert again(x, t, t).equal(first) and not second.equal(first)


@pytest.mark.parametrize("name", NAMES)
def test_forward(name, story, arrays):
    """The picture of the truth is the process itself: it goes up by exact transitions on the same path, from the law of
    the data, and ends in the law of the noise.
    """
    own, told = scene(name), story["scenes"][name]
    x, ts, noise = own.forward(), own.times(20), own.noise.fresh()
    for k in range(20):
        t, s = ts[k], ts[k + 1]
        a = own.sde.alpha(t) / own.sde.alpha(s)
        v = own.sde.var(t) - a**2 * own.sde.var(s)
        assert torch.allclose(x[k], a * x[k + 1] + v.sqrt() * noise(x[0], t, s), atol=1e-9)
    width = np.asarray(told["width"])
    shown = data(arrays[f"{name}/forward"], width)
    w = width[:, None, None]
    assert (np.abs(shown - x[:, :SHOWN].numpy().clip(-w, w)) <= (0.5 / LEVELS + 1e-6) * 2 * w).all()
    assert sliced_wasserstein(x[0] / own.sde.sigma(ts[0]), torch.randn(4000, told["d"]).double(), 16) < 0.35


@dataclass(frozen=True)
class Off(Problem):
    """One Gaussian right of the middle and above it."""

    def law(self):
        return exact.GaussianMixture(torch.ones(1), torch.tensor([[1.0, 0.5]]), torch.tensor([0.01]))


def test_density(story, arrays):
    """Its largest cell is where the law has its peak: columns count from the left, rows from the top."""
    own = SMALL(Off(), VP())
    density, w = own.density(20, 101), float(own.width[20])
    row, column = divmod(int(density.argmax()), 101)
    assert w * (2 * (column + 0.5) / 101 - 1) == pytest.approx(1.0, abs=2 * w / 101)
    assert w * (1 - 2 * (row + 0.5) / 101) == pytest.approx(0.5, abs=2 * w / 101)
    assert float(density.max()) == 1.0
    x = torch.tensor([[w * (2 * 30.5 / 101 - 1), w * (1 - 2 * 40.5 / 101)]], dtype=torch.float64)
    peak = own.score.log_prob(torch.tensor([[1.0, 0.5]], dtype=torch.float64), own.times(20)[20])
    want = ((own.score.log_prob(x, own.times(20)[20]) - peak) / 2).exp()
    assert float(density[40, 30]) == pytest.approx(float(want), rel=0.05)
    values, line = arrays["line/vp/density"], scene("line/vp")
    cells = values.shape[1]
    top = float(line.width[20]) * (1 - 2 * (values[20].argmax() + 0.5) / cells)
    assert values.shape == (21, cells) and values.max() == 255
    assert top == pytest.approx(Peaks().means[0], abs=2 * float(line.width[20]) / cells)


def test_scenes_refuse():
    """Steps that do not divide the last ones, and more particles drawn than there are."""
    for wrong, name in (({"steps": (5, 12)}, "steps"), ({"steps": ()}, "steps"), ({"shown": 2000}, "shown")):
        with pytest.raises(ValueError, match=f"{name} must"):
            Scene(Peaks(), VP(), **wrong)


# in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser, file):
    """Opens the page without a network; afterwards nothing was asked for and nothing was complained of."""
    complaints, asked, contexts = [], [], []

    def open_page(**options):
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(file.as_uri())
        until(page, "document.querySelectorAll('#cards canvas').length === 6 && explain.now.frame > 0")
        drawn(page)
        return page

    yield open_page
    assert not complaints and set(asked) == {file.as_uri()}
    for context in contexts:
        context.close()


def until(page, condition, seconds=20):
    """Wait for it; the page itself lets no string be run, as `wait_for_function` would."""
    end = monotonic() + seconds
    while not page.evaluate(condition):
        assert monotonic() < end, condition
        page.wait_for_timeout(20)


def drawn(page):
    """Wait until what was asked for is drawn."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def look(page, **settings):
    page.evaluate("settings => { explain.set(settings); explain.moveTo(settings.frame); }", settings)
    drawn(page)
    return page.evaluate("explain.shown()")


RUN = {
    "forward": lambda s: "forward",
    "ddpm": lambda s: f"ancestral/{s['eta']:g}/{s['steps']}",
    "langevin": lambda s: f"langevin/{s['rate']}/{s['steps']}",
    "pc": lambda s: f"corrected/{s['rate']}/{s['steps']}",
    "ddim": lambda s: f"ancestral/0/{s['steps']}",
    "flow": lambda s: "flow/20",
}
LOOKS = (
    {"law": "plane", "process": "vp", "steps": 5, "eta": 0.5, "rate": "small", "frame": 11},
    {"law": "plane", "process": "ve", "steps": 20, "eta": 1, "rate": "large", "frame": 20},
    {"law": "line", "process": "vp", "steps": 10, "eta": 0, "rate": "medium", "frame": 0},
    {"law": "line", "process": "ve", "steps": 5, "eta": 1, "rate": "small", "frame": 17},
)


@pytest.mark.slow
@pytest.mark.parametrize("settings", LOOKS, ids=lambda s: f"{s['law']}-{s['process']}")
def test_what_is_drawn_is_what_is_stored(settings, opened, story, arrays):
    """Positions, errors and calls of every picture are those of its run at the last state not after the slider; and at
    a particle's place the picture has the colour of particles.
    """
    page, name = opened(device_scale_factor=2), f"{settings['law']}/{settings['process']}"
    told, shown = story["scenes"][name], look(page, **settings)
    for key, picture in shown.items():
        of = RUN[key](settings)
        run = told["runs"].get(
            of, {"frames": list(range(21)), "measured": told["measured"], "distance": told["forward"]}
        )
        k = max(i for i, frame in enumerate(run["frames"]) if frame <= settings["frame"])
        frame = run["frames"][k]
        assert (picture["state"], picture["frame"]) == (k, frame)
        want = (2 * arrays[f"{name}/{of}"][k] / LEVELS - 1) * told["width"][frame]
        assert np.abs(np.asarray(picture["x"]) - want).max() < 1e-9
        assert picture["distance"] == run["distance"][run["measured"].index(frame)]
        assert picture["noise"] == told["floor"][told["measured"].index(frame)]
        assert picture["nfe"] == (run["nfe"][k] if "nfe" in run else None)
        assert picture["off"] == (run["off"][k] if run.get("off") else None)
        if settings["law"] == "plane":
            side, edge = page.evaluate(f"document.querySelector('[data-way={key}]').clientWidth"), 0.035
            x, y = np.asarray(picture["pixels"]).T / side
            u = (np.stack([x, 1 - y], 1) - edge) / (1 - 2 * edge)
            assert np.abs((2 * u - 1) * told["width"][frame] - want).max() < 1e-9
        colour = page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('--{key}')").strip()
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        seen = page.evaluate(
            """([key, spots]) => {
              const canvas = document.querySelector(`[data-way=${key}]`), { width, height } = canvas;
              const { data } = canvas.getContext('2d').getImageData(0, 0, width, height);
              const at = ([x, y]) => 4 * (Math.floor(2 * y) * width + Math.floor(2 * x));
              return spots.map(spot => [...data.slice(at(spot), at(spot) + 3)]);
            }""",
            [key, picture["pixels"][:8]],  # that of index 8 is followed, and dark
        )
        like = np.abs(np.asarray(seen) - wanted).max(1) < 70
        assert like.mean() >= 0.5, key


@pytest.mark.slow
@pytest.mark.parametrize("law", TOLD)
def test_the_shade_is_the_stored_density(law, opened, arrays):
    """Its opacity, cell by cell: of one time in the plane, of all times, from left to right, on a line."""
    page, stored = opened(), arrays[f"{law}/ve/density"]
    look(page, law=law, process="ve", frame=14)
    seen = page.evaluate(
        """() => {
          const { width, height } = heat(14), image = heat(14).getContext('2d').getImageData(0, 0, width, height);
          return [width, height, Number(colours['heat-top']), [...image.data].filter((_, i) => i % 4 === 3)];
        }"""
    )
    width, height, top, opacity = seen
    want = stored[7] if law == "plane" else stored.T
    assert np.abs(np.reshape(opacity, (height, width)) - top * want).max() <= 0.5


@pytest.mark.slow
def test_it_plays(opened):
    """Play moves the slider to the end and stops there; pause holds it."""
    page = opened()
    frame = lambda: page.evaluate("explain.now.frame")  # noqa: E731
    page.evaluate("explain.moveTo(0)")
    page.click("#play")
    until(page, "explain.now.frame > 2")
    page.click("#play")
    held = frame()
    page.wait_for_timeout(900)
    assert frame() == held and int(page.input_value("#time")) == held
    page.click("#play")
    until(page, "explain.now.frame === 20 && !explain.now.playing")
    assert page.inner_text("#play") == "Play"


@pytest.mark.slow
def test_reduced_motion(opened):
    """Who wants little motion sees ten pictures, and no film between them."""
    page, seen = opened(reduced_motion="reduce"), set()
    page.evaluate("explain.moveTo(16), explain.play(true)")
    end = monotonic() + 20
    while page.evaluate("explain.now.playing") and monotonic() < end:
        seen.add(page.evaluate("explain.now.frame"))
    assert seen | {20} == {16, 18, 20} and page.evaluate("explain.now.frame") == 20


@pytest.mark.slow
def test_keyboard(opened):
    """Space plays, arrows move, and every control is reached by the tab key and has a name."""
    page = opened()
    page.evaluate("explain.moveTo(5)")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("explain.now.frame") == 6
    page.keyboard.press("Space")
    until(page, "explain.now.playing && explain.now.frame > 6")
    page.keyboard.press("Space")
    assert not page.evaluate("explain.now.playing")
    page.focus("#time")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("explain.now.frame") == 1
    page.focus("#tab-plane")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("explain.now.law") == "line"
    page.focus("input[name=steps]:checked")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("explain.now.steps") == 20
    reached = []
    page.evaluate("document.activeElement.blur()")
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
    assert {"tab-line", "play", "time", "steps", "eta", "rate", "process", "follow"} <= set(reached)
    named = "e => e.labels?.length || e.textContent.trim() || e.ariaLabel || e.getAttribute('aria-labelledby')"
    assert all(e.evaluate(named) for e in page.query_selector_all("button, input, canvas"))


@pytest.mark.slow
def test_touch_follows(opened, story):
    """A tap on a particle follows it in all pictures."""
    page = opened(has_touch=True)
    shown = look(page, law="plane", process="vp", steps=20, frame=20)
    x, y = shown["pc"]["pixels"][9]
    page.locator("[data-way=pc]").tap(position={"x": x, "y": y})
    assert page.evaluate("explain.now.follow") == 9 and page.input_value("#follow") == "10"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone(opened, scheme):
    """Nothing is wider than the screen, on either tab, and canvases have the screen's own pixels."""
    page = opened(viewport={"width": 390, "height": 844}, device_scale_factor=3, has_touch=True, color_scheme=scheme)
    for law in ("plane", "line"):
        look(page, law=law, frame=12)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        size = page.evaluate("(c => [c.width, c.clientWidth])(document.querySelector('[data-way=ddpm]'))")
        assert size[0] == round(3 * size[1])
    box = page.locator("#play").bounding_box()
    assert box["height"] >= 44 and box["y"] + box["height"] <= 844


@pytest.mark.slow
def test_words(opened, story):
    """The table and the code beside each sampler say what the settings give."""
    page = opened()
    look(page, law="line", process="ve", steps=5, eta=1, rate="small", frame=3)
    runs = story["scenes"]["line/ve"]["runs"]
    rows = [row.inner_text().split("\t") for row in page.query_selector_all("#table tr")]
    assert [row[0] for row in rows][1:] == [
        "Annealed Langevin", "Predictor-corrector", "DDIM", "Probability flow",
    ]  # fmt: skip
    for (name, calls, distance, *_), key in zip(rows, ("ddpm", "langevin", "pc", "ddim", "flow")):
        run = runs[RUN[key]({"eta": 1, "steps": 5, "rate": "small"})]
        assert int(calls) == run["nfe"][-1] and float(distance) == pytest.approx(run["distance"][-1], abs=6e-4), name
        assert page.inner_text(f"#code-{key}") == run["code"]
    alone = [float(word) for word in re.findall(r"\d\.\d+", page.inner_text("#alone"))]
    told = story["scenes"]["line/ve"]
    assert alone == pytest.approx([told[key][-1] for key in ("floor", "least", "most")], abs=6e-4)
    assert page.text_content("#begin") == story["scenes"]["line/ve"]["code"]
