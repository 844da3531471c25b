"""SimMIM: a simple framework for masked image modeling (arXiv 2111.09886), ViT and Swin.

The student predicts the raw pixels of hidden 32-pixel cells through one linear layer. Source:
microsoft/SimMIM, `simmim_pretrain__vit_base__img224__800ep`.

Cost: 800 epochs of 2048 images; no teacher.
Published, ViT-B/16, 800 epochs: fine-tuning 83.8. Swin-B, 100 epochs at 192 pixels ("swin"):
fine-tuning 82.8 at 192 pixels.

Known: the head is written as a linear layer (there a 1x1 convolution and a pixel shuffle, which is
the same map). For the linear probe the authors advise averaged patches of about the 8th block;
its other settings are MAE's (UNVERIFIED), and so is all of segmentation and of ViT-L ("large").
Swin: by a slip of the source the tables of relative positions are decayed in pretraining and not in
fine-tuning; that is followed.
"""

from __future__ import annotations

from methods.parts.augment import Augmentation
from methods.parts.decoder import LinearHead
from methods.parts.encoder import LARGE, Beit
from methods.parts.loss import L1
from methods.parts.masking import Cells
from methods.parts.model import Method, Objective
from methods.parts.optimisation import Optimisation
from methods.parts.target import Pixels

METHOD = Method(
    name="simmim",
    masking=Cells(ratio=0.6, cell=2),
    encoder=Beit(layer_scale=0.1, drop_path=0.1),
    decoder=LinearHead(),
    objectives=(Objective(Pixels(normalise_patches=False), L1(), where="hidden"),),
    augmentation=Augmentation(scale=(0.67, 1.0)),
    optimisation=Optimisation(
        epochs=800,
        batch=2048,
        learning_rate=1e-4,
        per=512,
        warmup_epochs=10,
        warmup_start=5e-3,
        schedule="step",
        decay_epochs=(700,),
        undecayed=("cls_token", "pos_embed"),
        clip=5.0,
        precision="fp16",
    ),
)

EVALUATIONS = {
    "linear": {"pooling": "mean"},
    "finetune": {
        "optimisation.learning_rate": 1.25e-3,
        "optimisation.per": 512,
        "optimisation.batch": 2048,
        "optimisation.warmup_epochs": 20,
        "optimisation.minimum_rate": 2.5e-7,
        "optimisation.clip": 5.0,
        "optimisation.undecayed": ["cls_token", "pos_embed"],
    },
}

SCHEDULES = {
    "large": {
        **LARGE,
        "encoder.layer_scale": 1e-5,
        "finetune.optimisation.layer_decay": 0.75,
        "finetune.drop_path": 0.2,
        "segmentation.optimisation.layer_decay": 0.75,
        "segmentation.channels": 1024,
    },
    # simmim_pretrain__swin_base__img192_window6__100ep and its simmim_finetune.
    "swin": {
        "encoder": {"type": "Swin", "image": 192, "window": 6},
        "masking.cell": 1,
        "augmentation.size": 192,
        "optimisation.epochs": 100,
        "optimisation.learning_rate": 2e-4,
        "optimisation.schedule": "cosine",
        "optimisation.decay_epochs": [],
        "optimisation.minimum_rate": 4e-5,
        "optimisation.undecayed": ["mask_token"],
        "linear.augmentation.size": 192,
        "linear.validation.size": 192,
        "finetune.augmentation.size": 192,
        "finetune.validation.size": 192,
        "finetune.optimisation.layer_decay": 0.9,
        "finetune.optimisation.minimum_rate": 1e-6,
        "finetune.optimisation.undecayed": ["relative_position_bias_table"],
        "segmentation.optimisation.undecayed": ["relative_position_bias_table"],
    },
}
