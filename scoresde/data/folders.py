"""Files in folders, and the classes that folders are."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def files_below(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files with these suffixes in folder and the folders below it, in the order of their names; hidden ones, and
    __MACOSX, are passed over. Raises ValueError for links to folders, and for what may not be read.
    """

    def refuse(error: OSError) -> None:
        raise ValueError(f"folder must be readable, got {str(folder)!r}: {error}") from error

    found: list[Path] = []
    for where, inside, names in os.walk(folder, onerror=refuse) if os.path.isdir(folder) else ():
        inside[:] = [name for name in inside if not name.startswith(".") and name != "__MACOSX"]
        if links := [path for path in (Path(where, name) for name in inside) if path.is_symlink()]:
            raise ValueError(f"folder must hold no links to folders, got {links[0]}: they may lead in a circle")
        found += [Path(where, name) for name in names if not name.startswith(".")]
    return sorted(file for file in found if file.suffix.lower() in suffixes)


def folders_of(folder: Path, files: Sequence[Path]) -> np.ndarray:
    """(n,): for each file the name of the folder in `folder` that it lies in. Raises ValueError for one beside them."""
    inside = [file.relative_to(folder).parts for file in files]
    if beside := [file for file, parts in zip(files, inside, strict=True) if len(parts) < 2]:
        raise ValueError(f"classes must be False where files lie in no folder of a class, such as {beside[0]}")
    return np.array([parts[0] for parts in inside])
