"""Any bytes in place of a weight file: the weights are read, or refused in one line naming it.

Each kind of file is tried with 15 inputs, and 300 in the long suite: valid files cut, with bytes
changed or inserted, with tensors missing, added, renamed, of another shape or type, or not finite.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from mutations import attempt, damaged, try_all
from weight_files import READ, changed, saved

from methods.errors import StageError
from methods.released import import_encoder
from methods.teachers.archive import read_weights

COUNTS = [pytest.param(15, id="some"), pytest.param(300, id="many", marks=pytest.mark.long)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", READ)
def test_weight_files(kind: str, count: int, tmp_path: Path) -> None:
    suffix, make, loader = READ[kind]
    state = make()
    valid = saved(state, tmp_path / f"valid{suffix}")
    loader(valid, tmp_path)
    path = tmp_path / f"given{suffix}"

    def read(given: Any) -> bool:
        if isinstance(given, bytes):
            path.write_bytes(given)
        else:
            saved(given, path)
        return attempt(lambda: loader(path, tmp_path), (str(path),))

    inputs = damaged(valid.read_bytes())
    if suffix != ".ts":  # whose names and kinds are those of a module
        inputs = st.one_of(inputs, changed(state))
    try_all(st.one_of(inputs, st.just(valid.read_bytes())), count, read)


def saved_bytes(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"w": torch.zeros(2, dtype=torch.complex64)}, "no plain tensor"),
        ({"w": torch.eye(2).to_sparse()}, "no plain tensor"),
        ([torch.zeros(2)], "holds no tensors"),
        ({"state_dict": {"model": {}}}, "holds no tensors"),
    ],
)
def test_what_is_no_state_is_refused(value: Any, told: str, tmp_path: Path) -> None:
    path = tmp_path / "given.pth"
    path.write_bytes(saved_bytes(value))
    with pytest.raises(StageError, match=told):
        read_weights(path)


def test_a_name_cannot_ask_for_a_billion_blocks(tmp_path: Path) -> None:
    _, make, _ = READ["ViT, torch.save"]
    from tiny_methods import tiny

    path = saved({**make(), "blocks.999999999.x": torch.zeros(1)}, tmp_path / "given.pth")
    with pytest.raises(StageError, match=r"given\.pth: no ViT .*1000000000 blocks in"):
        import_encoder(path, tiny("mae").encoder, "imagenet", None)
