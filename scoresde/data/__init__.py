"""Data to train on, and data held out.

A `Source` is a frozen value that says where samples come from; `load()` gives them as a `Dataset`. Discrete data (grey
levels) are stored on [-1, 1] together with their `Quantized`, from which every later bits/dim follows; continuous data
are taken as they are. Which samples are held out depends on the seed of the source alone. To make a source looks at
its fields only; `load()` is what reads files.
"""

from .arrays import Array
from .cifar import Cifar10
from .dataset import Dataset, Source, class_names, split
from .idx import Idx
from .images import Images
from .mapped import Mapped
from .own import from_torch
from .sounds import Sounds
from .tables import Table
from .toys import Checkerboard, Digits, Moons, Ring, SwissRoll, Toy

__all__ = [
    "Array", "Checkerboard", "Cifar10", "Dataset", "Digits", "Idx", "Images", "Mapped", "Moons", "Ring", "Sounds",
    "Source", "SwissRoll", "Table", "Toy", "class_names", "from_torch", "split",
]  # fmt: skip
