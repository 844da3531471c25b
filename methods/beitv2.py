"""BEiT v2: masked image modeling with vector-quantized visual tokenizers (arXiv 2208.06366).

The student predicts, for 75 of 196 patches hidden in blocks, the codes of a tokenizer distilled
from CLIP; twice, the second time through a bottleneck at the class token. Source: microsoft/unilm
`beit2/`, `PRETRAINING.md`.

Cost: 300 epochs of 2048 images; 16 GPUs of 128 images each in the source.
Published, ViT-B/16, 300 epochs: linear 80.1, fine-tuning 85.0, ADE20K 52.7; 1600 epochs:
fine-tuning 85.5, ADE20K 53.1.

Known: no linear-probe script was released; the paper probes the class token, and all else here is
MAE's protocol (UNVERIFIED). Codes come under the student's autocast in the source, here as the
tokenizer decides.
"""

from __future__ import annotations

from methods.parts.augment import Augmentation
from methods.parts.decoder import PatchAggregation
from methods.parts.encoder import LARGE, Beit
from methods.parts.loss import CrossEntropy
from methods.parts.masking import Blockwise
from methods.parts.model import Method, Objective
from methods.parts.optimisation import Optimisation
from methods.parts.target import Codes

METHOD = Method(
    name="beitv2",
    masking=Blockwise(hidden=75, of=196, minimum=16, exact=True),
    encoder=Beit(layer_scale=0.1),
    decoder=PatchAggregation(early_layer=9, depth=2, shared_head=True),
    objectives=(
        Objective(Codes("vqkd"), CrossEntropy(), where="hidden", prediction="tokens"),
        Objective(Codes("vqkd"), CrossEntropy(), where="hidden", prediction="aggregated"),
    ),
    augmentation=Augmentation(scale=(0.2, 1.0), jitter=(0.4, 0.4, 0.4)),
    optimisation=Optimisation(
        epochs=300,
        batch=2048,
        learning_rate=1.5e-3,
        warmup_epochs=10,
        warmup="table",
        minimum_rate=1e-5,
        betas=(0.9, 0.98),
        undecayed=("cls_token", "pos_embed"),
        clip=3.0,
        precision="fp16",
    ),
)

EVALUATIONS = {
    "finetune": {
        "optimisation.per": None,
        "optimisation.warmup": "table",
        "optimisation.warmup_epochs": 20,
        "optimisation.undecayed": ["cls_token", "pos_embed"],
    },
    "segmentation": {
        "optimisation.learning_rate": 5e-5,
        "optimisation.layer_decay": 0.75,
        "drop_path": 0.15,
    },
}

_LONG = {
    "optimisation.epochs": 1600,
    "optimisation.betas": [0.9, 0.999],
    "encoder.drop_path": 0.1,
}
_LARGE = {
    **LARGE,
    "encoder.layer_scale": 1e-5,
    "decoder.early_layer": 21,
    "finetune.optimisation.epochs": 50,
    "finetune.optimisation.warmup_epochs": 5,
    "finetune.optimisation.layer_decay": 0.8,
    "finetune.drop_path": 0.2,
    "segmentation.optimisation.learning_rate": 4e-5,
    "segmentation.optimisation.layer_decay": 0.9,
    "segmentation.drop_path": 0.2,
    "segmentation.blocks": [7, 11, 15, 23],
    "segmentation.channels": 1024,
}
SCHEDULES = {
    "1600": {
        **_LONG,
        "finetune.optimisation.layer_decay": 0.6,
        "finetune.drop_path": 0.2,
    },
    "large": _LARGE,
    "large-1600": {**_LARGE, **_LONG, "finetune.optimisation.learning_rate": 2e-4},
}
