"""mmpretrain's pipelines of the same images, to be measured in turn with ours.

They decode by OpenCV and end with the bytes of an image, normalised on the device, as ours do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.bench.peer_mmpretrain import CONFIGS, installed
from methods.errors import InputError

EVALUATIONS = {
    "finetune": "mae/benchmarks/vit-base-p16_8xb128-coslr-100e_in1k.py",
    "linear": "mae/benchmarks/vit-base-p16_8xb2048-linear-coslr-90e_in1k.py",
}


def load(name: str) -> tuple[str, Callable[[Sequence[Path]], Any]]:
    """Its version, and its batch of files as configured for the method or evaluation `name`.

    Raises InputError where it is not installed or has no such pipeline.
    """
    known = {**CONFIGS, **EVALUATIONS}
    if name not in known:
        raise InputError(f"--peer: mmpretrain has no {name}; it has {', '.join(known)}")
    package = installed()
    from mmengine import Config
    from mmengine.dataset import Compose, pseudo_collate
    from mmpretrain.registry import TRANSFORMS

    config = Config.fromfile(Path(package.__file__).parent / ".mim" / "configs" / known[name])
    steps = config.train_dataloader.dataset.pipeline
    transform = Compose([TRANSFORMS.build(step) for step in steps])

    def batch(files: Sequence[Path]) -> Any:
        return pseudo_collate([transform({"img_path": str(each), "gt_label": 0}) for each in files])

    return str(package.__version__), batch
