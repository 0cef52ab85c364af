"""How far samples of the models that come with the library are from data held out, beside as many training images.

    python benchmarks/quality.py [--n 1000] [--calls 20] [--only NAMES ...]

Samples are those of `scoresde sample MODEL`, GaussianReference on grid.reference; the measures are those of `scoresde
evaluate`, in the features of a classifier fitted to at most 10,000 training images of each data set, which are no
Inception features. As many data held out are taken as there are samples: at most 359 of the digits, which have no
more, and a quarter of N of the large network `mnist`. MNIST and Fashion-MNIST are looked for in ../shared/data, and
left out where they are absent.
"""

import argparse
from collections.abc import Iterator

import torch
from foreign import SHARED
from harness import save, table

from scoresde import GaussianReference, draw, grid, load, shipped
from scoresde.data import Dataset, Digits, Idx
from scoresde.files import all_shipped
from scoresde.lab import Classifier, quality

MOST, EPOCHS = 10_000, 4
"""Training images of a classifier, and how often it sees each."""


def data_of(name: str) -> Dataset | None:
    """What a model was trained on, if it is there."""
    if name.startswith("digits"):
        return Digits().load()
    folder = SHARED / ("fashion-mnist" if name.startswith("fashion") else "mnist")
    return Idx(folder).load() if folder.is_dir() else None


def rows(name: str, data: Dataset, features: Classifier, n: int, calls: int) -> Iterator[dict[str, object]]:
    """Every measure of a model."""
    found = load(shipped(name), dtype=torch.float32)
    assert found.around is not None
    n = min(n, len(data.held_out))
    ts = grid.reference(found.model.sde, calls, around=found.around)
    p, step = found.model.sde.reverse(found.model, 0.0), GaussianReference(found.around)
    starts = range(0, n, 250)
    made = torch.cat([draw(p, found.shape, ts, step, seeds=range(k, min(k + 250, n))) for k in starts])
    train, held = data.values(data.train), data.values(data.held_out[:n])
    for row in quality(made, train, held, features.features, 0):
        said = {k: _plain(v) for k, v in vars(row).items()}
        yield {"model": name, "samples": n, **said}


def _plain(v: object) -> object:
    """Four digits of a number, and nothing of what is none."""
    return v if not isinstance(v, float) else round(v, 4) if v == v else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=all_shipped())
    options = parser.parse_args()
    torch.set_num_threads(1)
    known: dict[tuple[int, ...], Classifier] = {}
    found = []
    for name in options.only or all_shipped():
        data = data_of(name)
        if data is None or data.train_labels is None:
            print(f"{name}: left out, as its data or their labels are not in {SHARED}")
            continue
        key = (len(data.train), *data.shape, int(data.train[:100].sum()))
        if key not in known:
            few = data.train[:MOST]
            known[key] = Classifier.fit(data.values(few), data.train_labels[:MOST], 0, EPOCHS)
        n = options.n // 4 if name == "mnist" else options.n
        found += rows(name, data, known[key], n, options.calls)
        print(found[-1], flush=True)
    file = save("quality", "cpu", ("scoresde", "torch"), found)
    print(table(found), f"\nwritten to {file}")


if __name__ == "__main__":
    main()
