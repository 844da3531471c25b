"""OpenMMLab's mmpretrain as a peer: its models and optimisers as configured, repaired to run.

Needs the package onedl-mmpretrain, which is no dependency. Weights of its teachers are random, the
masks and images are the subject's, and where it ships AMP for CUDA it runs under torch's autocast.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.bench.counting import SMALL
from harness.bench.measure import Clock
from harness.bench.peer import Peer
from harness.bench.subject import Subject
from methods.errors import InputError

INSTALL = "pip install --no-deps onedl-mmpretrain einops mat4py"
CONFIGS = {
    "milan": "milan/milan_vit-base-p16_16xb256-amp-coslr-400e_in1k.py",
    "beitv2": "beitv2/beitv2_beit-base-p16_8xb256-amp-coslr-300e_in1k.py",
    "cae": "cae/cae_beit-base-p16_8xb256-amp-coslr-300e_in1k.py",
    "mae": "mae/mae_vit-base-p16_8xb512-amp-coslr-400e_in1k.py",
    "simmim": "simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py",
}
REPAIRS = {
    "milan": (
        "the decoder's input width is 768, not 1024",
        "CLIP's weights are random and its text tower, which does not run, is the smallest",
    ),
    "beitv2": ("VQ-KD's weights are random",),
    "cae": ("DALL-E's weights are random", "98 of 196 patches are hidden, not 75"),
    "simmim": ("its own BEiT ViT-B/16 at 224 stands for Swin-B at 192",),
}
ENCODER = "ViT-B/16"


def load(precision: str, subject: Subject, clock: Clock) -> Peer:
    """mmpretrain's implementation of the subject; see `harness.bench.peer.load_peer`."""
    if subject.name not in CONFIGS:
        raise InputError(f"--peer: mmpretrain has no {subject.name}; it has {', '.join(CONFIGS)}")
    if subject.encoder != ENCODER:
        raise InputError(f"--peer: mmpretrain is compared on {ENCODER} (--scale paper)")
    package, device = installed(), clock.device
    _quiet()
    config = _config(package, subject.name)
    model = _build(config, subject.name).to(device).train()
    wrapper = _optimiser(model, config)
    batches = {size: _data(subject, size, device) for size in {*SMALL, subject.optimisation.batch}}

    def loss(size: int) -> torch.Tensor:
        inputs = model.data_preprocessor(dict(batches[size]), True)
        total: torch.Tensor = model.parse_losses(model._run_forward(inputs, mode="loss"))[0]
        return total

    def update() -> None:
        wrapper.step()
        wrapper.zero_grad()

    about = ("mmpretrain", str(package.__version__))
    repairs, batch = REPAIRS.get(subject.name, ()), subject.optimisation.batch
    return Peer(about, precision, repairs, model, loss, update, batch, clock)


def installed() -> Any:
    """mmpretrain with its models registered; InputError where it is not installed."""
    _without_index()
    try:
        package = importlib.import_module("mmpretrain")
        importlib.import_module("mmpretrain.models")
    except ImportError as error:
        raise InputError(f"--peer mmpretrain: {error}; install it with: {INSTALL}") from None
    return package


def _quiet() -> None:
    """Its logger names every parameter."""
    from mmengine.logging import MMLogger

    MMLogger.get_current_instance().setLevel("ERROR")


def _without_index() -> None:
    """A stand-in for `modelindex`, whose wheel is empty and which only downloads need."""
    for name in ("modelindex", "modelindex.load_model_index", "modelindex.models"):
        sys.modules.setdefault(name, types.ModuleType(name))
    model = types.ModuleType("modelindex.models.Model")
    model.Model = type("Model", (), {})  # type: ignore[attr-defined]
    sys.modules.setdefault(model.__name__, model)
    index: Any = sys.modules["modelindex.load_model_index"]
    index.load = getattr(index, "load", None)


def _config(package: Any, name: str) -> Any:
    """The configuration as shipped, with what REPAIRS says."""
    from mmengine import Config

    config = Config.fromfile(Path(package.__file__).parent / ".mim" / "configs" / CONFIGS[name])
    model = config.model
    if name == "milan":
        model.neck.embed_dim = 768
        model.target_generator.tokenizer_path = ""
    if name in ("beitv2", "cae"):
        model.target_generator.pop("init_cfg")
    if name == "cae":
        model.neck.mask_tokens_num = 98
    if name == "simmim":
        model.backbone = {
            "type": _registered_featmap(),
            "arch": "base",
            "patch_size": 16,
            "out_indices": [-1],
            "drop_path_rate": 0.1,
            "final_norm": True,
        }
        model.neck = {"type": "SimMIMLinearDecoder", "in_channels": 768, "encoder_stride": 16}
        model.head.patch_size = 16
    model.data_preprocessor = config.get("data_preprocessor")
    return config


def _registered_featmap() -> str:
    """BEiT's backbone whose output is the map that SimMIM's neck reads."""
    from mmpretrain.models.selfsup.beit import BEiTPretrainViT
    from mmpretrain.registry import MODELS

    class BEiTFeatureMap(BEiTPretrainViT):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor]:
            tokens = super().forward(x, mask)[-1]
            side = self.patch_resolution[0]
            return (tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side)),)

    MODELS.register_module(module=BEiTFeatureMap, force=True)
    return "BEiTFeatureMap"


def _build(config: Any, name: str) -> Any:
    from mmpretrain.registry import MODELS

    torch.manual_seed(0)
    if name == "milan":
        _untrained_clip()
    model = MODELS.build(config.model)
    model.init_weights()
    return model


def _untrained_clip() -> None:
    """Let its CLIP generator read random weights instead of a file."""
    from mmpretrain.models.selfsup import milan
    from mmpretrain.models.utils.clip_generator_helper import CLIP

    clip: nn.Module = CLIP(512, 224, 12, 768, 16, 1, 1, 64, 1, 1)
    nn.init.normal_(clip.get_parameter("text_projection"))
    milan._load_checkpoint = lambda _: dict(clip.state_dict())


def _optimiser(model: Any, config: Any) -> Any:
    """Its optimiser and gradient clipping; loss scaling is left out, as only fp16 needs it."""
    from mmengine.optim import build_optim_wrapper

    settings = dict(config.optim_wrapper)
    settings["type"] = "OptimWrapper"
    settings.pop("loss_scale", None)
    return build_optim_wrapper(model, settings)


def _data(subject: Subject, size: int, device: torch.device) -> Mapping[str, Any]:
    """`size` of the subject's images and masks as its loader would collate them."""
    from mmpretrain.structures import DataSample

    micro = subject.sample(size)
    image = micro["image"].to(device)
    samples = []
    for draw in micro["draw"]:
        sample = DataSample()
        side = int(len(draw) ** 0.5)
        sample.set_field(draw.view(side, side).long().to(device), "mask")
        samples.append(sample)
    two = subject.name in ("beitv2", "cae")
    inputs = [image, micro.get("second", micro["image"]).to(device)] if two else image
    return {"inputs": inputs, "data_samples": samples}
