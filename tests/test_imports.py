"""Who may import whom, read off every module; and what the light commands must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = {"methods": 0, "evals": 1, "harness": 2}
# A library -> where it may be imported: prefixes of paths below the root.
ONLY = {
    "submitit": ("harness/backends/", "harness/worker.py"),
    "mlflow": ("harness/tracking/",),
    "pandas": ("harness/report/",),
    "mmseg": ("evals/segmentation",),
    "mmengine": ("evals/segmentation", "harness/bench/peer_"),
    "mmpretrain": ("harness/bench/peer_",),
    "mmcv": ("evals/segmentation",),
    "open_clip": ("methods/teachers/",),
}
MODULES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def test_layers_and_libraries_keep_to_their_places() -> None:
    wrong = []
    for path in MODULES:
        place = str(path.relative_to(ROOT))
        for name in imports(path):
            first = name.split(".")[0]
            if first in LAYERS and LAYERS[first] > LAYERS[place.split("/")[0]]:
                wrong.append(f"{place} imports {name}")
            if first in ONLY and not place.startswith(ONLY[first]):
                wrong.append(f"{place} imports {name}")
    assert not wrong


def test_every_module_opens_with_one_sentence() -> None:
    without = [path for path in MODULES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not without


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--dry-run"),
        ("status",),
        ("report",),
        ("run", "--dry-run", "--scale", "paper", "--cluster", "eight-gpu-nodes"),
    ],
)
def test_light_commands_load_neither_torch_nor_mlflow(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    code = (
        "import sys\nfrom harness.cli import main\n"
        f"try: main({[*arguments, '--store', str(tmp_path / 'runs')]!r})\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'mlflow', 'timm', 'mmseg') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
