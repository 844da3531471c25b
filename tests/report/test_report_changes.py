"""What an ablation says of a row: parts by name, fields where only they differ, nothing raw."""

from __future__ import annotations

from typing import Any

import pytest

import methods
from harness.report.changes import changes
from methods.parts.model import Method
from methods.values import nested, to_plain, with_fields

PIXELS = {"objectives.0.target": {"type": "Pixels"}, "objectives.0.loss": {"type": "L2"}}
SEMANTIC = {"type": "SemanticAware"}
UNIFORM = {"type": "Random", "ratio": 0.75}
CODES = {"target": {"type": "Codes", "tokenizer": "vqkd"}, "loss": {"type": "CrossEntropy"}}


def task(name: str, changed: dict[str, Any]) -> dict[str, Any]:
    """The pretraining task of a row, as its stage.json has it."""
    method = with_fields(methods.get(name), nested(changed, "test"), "test")
    return {"method": to_plain(method, declared=Method)}


@pytest.mark.parametrize(
    ("name", "changed", "text"),
    [
        ("milan", PIXELS, "objectives.0.target: CLIP projected tokens → normalised pixels; "
            "objectives.0.loss: 2 - 2 cos → MSE"),
        ("milan", {"masking": UNIFORM}, "masking: semantic-aware 0.75 (CLIP) → random 0.75"),
        ("milan", {"masking": {**SEMANTIC, "ratio": 0.6}}, "masking.ratio: 0.75 → 0.6"),
        ("milan", {"decoder.depth": 2}, "decoder.depth: 8 → 2"),
        ("milan", {"optimisation.layer_decay": 0.65}, "optimisation.layer_decay: null → 0.65"),
        ("milan", {"encoder": {"type": "Beit"}}, "encoder: ViT ViT-B/16 → Beit ViT-B/16"),
        ("milan", {"decoder.depth": 8}, "decoder.depth: 8 → 8"),
        ("milan", {"linear.epochs": 5}, "linear.epochs = 5"),
        ("beitv2", {"objectives": [CODES]},
            "objectives: without VQ-KD codes -> cross-entropy, hidden (aggregated)"),
    ],
)  # fmt: skip
def test_a_change_is_told_in_words(name: str, changed: dict[str, Any], text: str) -> None:
    own = {field: value for field, value in changed.items() if field.split(".")[0] != "linear"}
    assert changes(changed, task(name, own), task(name, {}))[0] == text


def test_every_part_is_written_out_beside_it() -> None:
    changed = {"masking": UNIFORM, "objectives": [CODES]}
    default = task("milan", {})
    assert changes(changed, default, default)[1] == (
        "masking: SemanticAware(ratio=0.75, teacher=clip, statistics=imagenet) → "
        "Random(ratio=0.75); objectives: (target=Features(teacher=clip, tokens=projected, "
        "statistics=imagenet, normalise=none), loss=Cosine(scale=2.0), where=all, "
        "prediction=tokens, weight=1.0) → "
        "(target=Codes(tokenizer=vqkd), loss=CrossEntropy)"
    )


@pytest.mark.parametrize("begun", [{}, {"method": {"name": "another version's"}}])
def test_before_a_row_has_begun_the_study_s_words_are_shown(begun: dict[str, Any]) -> None:
    assert changes({"masking": UNIFORM}, begun, begun)[0] == "masking = Random(ratio=0.75)"
    assert changes({"decoder": {"type": "LinearHead"}}, begun, task("mae", {}))[0] == (
        "decoder: Transformer(width=512, depth=8, heads=16) → LinearHead"
    )
