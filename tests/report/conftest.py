"""Small stores that the report's tests read; made once, never written to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from report_stores import ABLATION, HOSTILE, PAPER, SMALL, Row, curve, make_store


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds; something of every state."""
    return make_store(tmp_path_factory.mktemp("small") / "runs", SMALL, history=curve)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small study, whose stages have left pictures."""
    from methods.engine.pictures import Strip, heat, photo, write

    root = make_store(tmp_path_factory.mktemp("drawn") / "runs", SMALL, history=curve)
    image, seen = torch.rand(3, 48, 48), torch.rand(6, 6) > 0.7
    for name in ("milan", "beitv2", "mae"):
        (folder,) = (root / "pretrain").glob(f"{name}-s0-*")
        strips = [
            Strip("1-images", "validation images", [photo(image)] * 4),
            Strip("3-mask", "mask: what the encoder sees", [photo(image, seen)] * 4),
            Strip("4-similarity", "cosine similarity <b>", [heat(torch.rand(6, 6), 8)] * 4),
        ]
        write(folder / "pictures", strips)
    return root


@pytest.fixture(scope="session")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One seed at the paper scale."""
    return make_store(tmp_path_factory.mktemp("paper") / "runs", PAPER, scale="paper")


@pytest.fixture(scope="session")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Milan with two changed fields."""
    root = tmp_path_factory.mktemp("ablation") / "runs"
    return make_store(root, ABLATION, name="milan-ablation", title="What matters")


@pytest.fixture(scope="session")
def claimed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Claims in long sentences, milestones, and a row in which whole parts are changed."""
    root = tmp_path_factory.mktemp("claimed") / "runs"
    early = {"linear@50": (60.0, 61.0)}
    changed = {"decoder": {"type": "Transformer"}, "masking": {"type": "Random", "ratio": 0.75}}
    rows = [
        Row("milan", (66.0, 67.0), milestones=early),
        Row("milan", (50.0, 52.0), (), (), "uniform-without-prompting", changed, milestones=early),
    ]
    sentence = (
        "A prompting decoder with attention-guided masks beats self-attention with uniform ones"
    )
    claim = {"sentence": sentence, "treatment": "milan", "control": rows[1].label}
    claims = [{**claim, "source": "the article"}, {**claim, "at": 0.5}]
    return make_store(root, rows, claims=claims)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Names that try to leave every format."""
    root = tmp_path_factory.mktemp("hostile") / "runs"
    failed = (("data", HOSTILE),)
    rows = [
        Row("milan", (66.0,), (74.0,), (38.0,)),
        Row("milan", (60.0,), failed, ("missing",), HOSTILE, {"decoder.depth": HOSTILE}),
        Row(HOSTILE, (1.0,), encoder=HOSTILE),
    ]
    return make_store(root, rows, title=HOSTILE, history=curve)
