"""Folders of sounds."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..shapes import count
from ..units import Units
from .dataset import Dataset, Source, check_memory, check_split, flag, known_path, split
from .divide import numbered
from .folders import files_below, folders_of


@dataclass(frozen=True)
class Sounds(Source):
    """All .wav files of a folder and the folders below it, in the order of their names, cut into series of `length`
    samples; what remains at the end of a file is left out.

    Whole numbers, of 8, 16, 24 or 32 bits, are moved to [-1, 1); floating-point numbers are taken as they are. Hidden
    files and folders, and __MACOSX, are passed over. Warns of files that are too short for one series.

    Of 10 files or more, whole files are held out, so that no recording is in both parts. Of fewer, the end of each is.
    """

    folder: Path
    """Where the sounds are."""
    length: int
    """How many samples a series has."""
    held_out: float = 0.1
    """The share of the files that is not trained on; of the series, of fewer than 10 files."""
    seed: int = 0
    """The seed that chooses the files; nothing is chosen of fewer than 10."""
    classes: bool = False
    """Whether each folder in `folder` is a class of its name; they are numbered in the order of the alphabet."""
    standardise: bool = True
    """Whether they are moved to mean 0 and deviation 1 in every channel."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", known_path("folder", self.folder))
        count("length", self.length, most=2**40)
        flag("classes", self.classes)
        flag("standardise", self.standardise)
        check_split(self.held_out, self.seed)

    def load(self) -> Dataset:
        """The series, (n, channels, length) in float32.

        Raises ValueError, naming the file, for one that cannot be read, is cut off, or holds what is no number; for
        files that differ in sampling rate or channels; if none is as long as a series; for a file beside the folders of
        classes.
        """
        files = files_below(self.folder, (".wav",))
        if not files:
            raise ValueError(f"folder must hold .wav files, got {str(self.folder)!r} with none")
        names = folders_of(self.folder, files) if self.classes else None
        sizes = [os.path.getsize(file) for file in files]
        pieces: list[np.ndarray] = []
        short: list[tuple[int, Path]] = []
        kinds: list[str] = []
        for i, file in enumerate(files):
            rate, a = _heard(file)
            if i == 0:
                check_memory(f"{len(files)} files", 8 * sum(sizes) * a.size // max(1, sizes[0]))  # and in two parts
            kinds.append(f"{rate} Hz and {a.shape[1]} channels")
            if kinds[i] != kinds[0]:
                both = f"{files[0]} has {kinds[0]} and {file} {kinds[i]}"
                raise ValueError(f"sounds must have one sampling rate and number of channels, but {both}")
            n = len(a) // self.length
            pieces.append(a[: n * self.length].reshape(n, self.length, a.shape[1]).transpose(0, 2, 1))
            if not n:
                short.append((len(a), file))
        if len(short) == len(files):
            most, file = max(short, key=lambda of: of[0])
            raise ValueError(
                f"length must be at most the {most} samples of the longest file, {file}, got {self.length}"
            )
        if short:
            what = (
                f"such as {short[0][1]} of {short[0][0]} samples, are shorter than length = {self.length} and left out"
            )
            warnings.warn(f"{len(short)} of {len(files)} files, {what}", stacklevel=2)
        held = torch.from_numpy(self._held([len(a) for a in pieces]))
        if held.all():
            raise ValueError(f"held_out must leave sounds to train on, got {self.held_out:g} of {len(files)} files")
        x = torch.from_numpy(np.concatenate(pieces))
        if names is None:
            data = Dataset(x[~held], x[held])
        else:
            labels, known = numbered(np.repeat(names, [len(a) for a in pieces]))
            y = torch.from_numpy(labels)
            data = Dataset(x[~held], x[held], y[~held], y[held], names=known)
        return data.in_units(Units.fit(data.train)) if self.standardise else data

    def _held(self, counts: list[int]) -> np.ndarray:
        """Which series are held out, of as many in each file: of whole files, or the last of each, round(share n) in
        all.
        """
        used = np.flatnonzero(counts)
        if len(used) >= 10:
            chosen = np.zeros(len(counts), bool)
            chosen[used[split(len(used), self.held_out, self.seed)[1].numpy()]] = True
            return np.repeat(chosen, counts)
        ends = np.cumsum(counts)
        lasts = np.diff(np.rint(self.held_out * ends).astype(int), prepend=0)
        return np.concatenate([np.arange(n) >= n - last for n, last in zip(counts, lasts, strict=True)])


def _heard(file: Path) -> tuple[int, np.ndarray]:
    """The sampling rate and the samples (n, channels) in float32."""
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # of what is neither the format nor the samples
            warnings.filterwarnings("error", "Reached EOF", wavfile.WavFileWarning)
            rate, a = wavfile.read(file)
    except Exception as error:  # scipy and struct raise a dozen kinds for a damaged file
        raise ValueError(f"{file} cannot be read as a sound: {' '.join(str(error).split())}") from error
    if a.dtype.kind == "u":
        a = (a.astype(np.float32) - 128) / 128
    elif a.dtype.kind == "i":  # scipy shifts 24 bits to the top of 32
        a = a.astype(np.float32) / 2.0 ** (8 * a.itemsize - 1)
    with np.errstate(over="ignore"):
        a = np.ascontiguousarray(a, dtype=np.float32)
    if not np.isfinite(a).all():
        raise ValueError(f"{file} must hold finite numbers, got nan or inf, or beyond float32")
    return rate, a[:, None] if a.ndim == 1 else a
