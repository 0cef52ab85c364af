"""Data to train on, and data held out.

A `Source` is a frozen value that says where samples come from; `load()` gives them as a `Dataset`. Discrete data (grey
levels) are stored on [-1, 1] together with their `Quantized`, from which every later bits/dim follows; continuous data
are taken as they are. Which samples are held out depends on the seed of the source alone. To make a source looks at
its fields only; `load()` is what reads files.
"""

from .arrays import Array
from .dataset import Dataset, Source, class_names, split
from .images import Images
from .toys import Checkerboard, Digits, Moons, Ring, SwissRoll, Toy

__all__ = [
    "Array", "Checkerboard", "Dataset", "Digits", "Images", "Moons", "Ring", "Source", "SwissRoll", "Toy",
    "class_names", "split",
]  # fmt: skip
