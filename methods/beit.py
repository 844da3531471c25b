"""BEiT: BERT pre-training of image transformers (arXiv 2106.08254).

The student predicts the DALL-E codes of patches hidden in blocks, at most 75 of 196, through one
linear layer. Source: microsoft/unilm `beit/`, `run_beit_pretraining.py`.

Cost: 800 epochs of 2048 images; the DALL-E encoder on a 112-pixel view of each.
Published, ViT-B/16, 800 epochs: linear 56.7, fine-tuning 83.2, ADE20K 45.6 to 47.1.

Known: the number of hidden patches varies, and the loss is the mean over all of the global batch
(the source means over each device first). The linear probe is MAE's protocol; the source's own
reads every block and reports the best. ViT-L ("large"): LayerScale is the source's, its evaluations
are those of MAE's ViT-L (UNVERIFIED).
"""

from __future__ import annotations

from methods.parts.augment import Augmentation, SecondView
from methods.parts.decoder import LinearHead
from methods.parts.encoder import LARGE, Beit
from methods.parts.loss import CrossEntropy
from methods.parts.masking import Blockwise
from methods.parts.model import Method, Objective
from methods.parts.optimisation import Optimisation
from methods.parts.target import Codes

METHOD = Method(
    name="beit",
    masking=Blockwise(hidden=75, of=196, minimum=16, exact=False),
    encoder=Beit(layer_scale=0.1, drop_path=0.1),
    decoder=LinearHead(),
    objectives=(Objective(Codes("dalle"), CrossEntropy(), where="hidden"),),
    augmentation=Augmentation(
        scale=(0.08, 1.0), jitter=(0.4, 0.4, 0.4), second=SecondView(112, "lanczos")
    ),
    optimisation=Optimisation(
        epochs=800,
        batch=2048,
        learning_rate=1.5e-3,
        warmup_epochs=10,
        warmup="table",
        minimum_rate=1e-5,
        undecayed=("cls_token", "pos_embed"),
        clip=3.0,
        precision="fp16",
    ),
)

EVALUATIONS = {
    "linear": {"pooling": "mean"},
    "segmentation": {"optimisation.learning_rate": 7e-4},
}

SCHEDULES = {
    "300": {"optimisation.epochs": 300},
    "large": {
        **LARGE,
        "encoder.layer_scale": 1e-5,
        "finetune.optimisation.layer_decay": 0.75,
        "finetune.drop_path": 0.2,
        "segmentation.optimisation.layer_decay": 0.75,
        "segmentation.channels": 1024,
    },
}
