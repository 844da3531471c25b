"""MAE: masked autoencoders are scalable vision learners (arXiv 2111.06377).

The student sees a random quarter of the patches; a small transformer predicts the pixels of the
others, each patch standardised by itself. Source: facebookresearch/mae, `PRETRAIN.md`.

Cost: 1600 epochs of 4096 images, the encoder at a quarter of its tokens.
Published, ViT-B/16, 1600 epochs: linear 68.0 (released weights 67.8), fine-tuning 83.6 (four seeds
83.46 to 83.66), ADE20K 48.1.

Known: no segmentation code was released; the protocol is that of implus/mae_segmentation (48.15),
without the relative position biases that it adds. ViT-L ("large"): segmentation is UNVERIFIED.
"""

from __future__ import annotations

from methods.parts.augment import Augmentation
from methods.parts.decoder import Transformer
from methods.parts.encoder import LARGE, ViT
from methods.parts.loss import L2
from methods.parts.masking import Random
from methods.parts.model import Method, Objective
from methods.parts.optimisation import Optimisation
from methods.parts.target import Pixels

METHOD = Method(
    name="mae",
    masking=Random(ratio=0.75),
    encoder=ViT(hidden="drop"),
    decoder=Transformer(width=512, depth=8, heads=16),
    objectives=(Objective(Pixels(normalise_patches=True), L2(), where="hidden"),),
    augmentation=Augmentation(scale=(0.2, 1.0)),
    optimisation=Optimisation(
        epochs=1600,
        batch=4096,
        learning_rate=1.5e-4,
        per=256,
        warmup_epochs=40,
        betas=(0.9, 0.95),
        precision="fp16",
    ),
)

SCHEDULES = {
    "300": {"optimisation.epochs": 300},
    "400": {"optimisation.epochs": 400},
    "800": {"optimisation.epochs": 800},
    "large": {
        **LARGE,
        "linear.optimisation.epochs": 50,
        "finetune.optimisation.learning_rate": 1e-3,
        "finetune.optimisation.epochs": 50,
        "finetune.optimisation.layer_decay": 0.75,
        "finetune.drop_path": 0.2,
        "segmentation.optimisation.layer_decay": 0.75,
        "segmentation.channels": 1024,
    },
}
