"""Where a number comes from: the command, the machine and the versions, for result files."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def origin(device: torch.device | str = "cpu", packages: tuple[str, ...] = ("scoresde", "torch")) -> dict[str, Any]:
    """The command line, the processor or GPU, the threads of torch, and the versions of Python and of packages."""
    return {
        "command": " ".join([_program(Path(sys.argv[0])), *sys.argv[1:]]),
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in packages},
    }


def _program(path: Path) -> str:
    """The name of a program; of a package that runs by `python -m`, the package's."""
    return path.parent.name if path.name == "__main__.py" else path.name


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
