"""Where a number came from: the commit, the packages' versions, the machine. Torch-free."""

from __future__ import annotations

import functools
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

CODE = Path(__file__).resolve().parent.parent
PACKAGES = (
    "mim-harness",
    "torch",
    "torchvision",
    "timm",
    "open_clip_torch",
    "onedl-mmsegmentation",
    "onedl-mmcv",
    "onedl-mmengine",
    "numpy",
    "mlflow",
    "submitit",
)


@functools.cache
def _git(folder: Path) -> tuple[str, bool]:
    # One call answers both questions. Untracked files do not count as changes: looking for them
    # would walk stores and data sets that lie inside the repository.
    command = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "", False
    lines = done.stdout.splitlines()
    heads = [line.split()[-1] for line in lines if line.startswith("# branch.oid ")]
    commit = heads[0] if heads and heads[0] != "(initial)" else ""
    return commit, any(not line.startswith("#") for line in lines)


def commit(folder: Path | None = None) -> str:
    """The commit checked out in `folder` (this code's own by default); "" without git."""
    return _git(folder or CODE)[0]


def dirty(folder: Path | None = None) -> bool:
    """Whether a tracked file differs from that commit; False without git."""
    return _git(folder or CODE)[1]


def versions() -> dict[str, str]:
    """Python's and the installed packages' versions, by distribution name."""
    return {"python": platform.python_version(), **dict(_installed())}


def _installed() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def host() -> str:
    """This machine's name, without its domain."""
    return platform.node().split(".")[0]


def device() -> str:
    """The first GPU's model, else the processor's.

    Where torch is already loaded it is asked, because it honours CUDA_VISIBLE_DEVICES; it is never
    imported for this.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    gpus = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return (
        next((_field(path, "Model") for path in gpus), "")
        or _field(Path("/proc/cpuinfo"), "model name")
        or platform.processor()
        or platform.machine()
    )


def _field(path: Path, name: str) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in pairs if key.strip() == name), "")
