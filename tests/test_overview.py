"""The unified table: read off the values, at every scale, with the sources' parameter counts."""

from __future__ import annotations

import json
from typing import Any

import pytest

import methods
from harness.overview import COLUMNS, overview
from harness.study import load_scale
from methods.errors import InputError


@pytest.mark.parametrize("scale", ["paper", "mini"])
def test_every_method_is_a_row(scale: str) -> None:
    rows = json.loads(overview(load_scale(scale), "json"))
    assert tuple(row["method"] for row in rows) == methods.names()
    assert all(tuple(row) == COLUMNS and row["parameters"] > 0 for row in rows)


def test_rows_are_those_of_the_sources() -> None:
    """Parameter counts, measured on the official modules."""
    rows = {row["method"]: row for row in json.loads(overview(load_scale("paper"), "json"))}
    assert rows["milan"] == {
        "method": "milan",
        "encoder": "ViT-B/16",
        "masking": "semantic-aware 0.75 (CLIP)",
        "hidden": "dropped",
        "decoder": "prompting 8x512",
        "objectives": "CLIP projected tokens -> 2 - 2 cos, all",
        "parameters": 111_524_352,
    }
    assert rows["beitv2"]["parameters"] == 106_143_056
    assert rows["beitv2"]["masking"] == "blockwise 75/196"
    assert rows["cae"]["objectives"].endswith("own latents -> 2 x MSE, hidden (latents)")


def test_markdown_has_a_line_a_method() -> None:
    lines = overview(load_scale("paper"), "md").splitlines()
    assert len(lines) == 2 + len(methods.names())
    assert "| 111,524,352 |" in next(line for line in lines if line.startswith("| milan |"))


def test_schedules_are_shown_of_those_that_have_them() -> None:
    """ViT-L: 303,301,632 parameters in timm's ViT-L/16, of which positions are not learned here."""
    rows = {row["method"]: row for row in shown("large")}
    assert tuple(rows) == methods.names()
    assert {row["encoder"] for row in rows.values()} == {"ViT-L/16"}
    decoder = 25_977_856 - 197 * 512 + 512 * (1024 - 768)
    assert rows["milan"]["parameters"] == 303_301_632 - 197 * 1024 + decoder
    assert [row["encoder"] for row in shown("swin")] == ["Swin-B"]
    with pytest.raises(InputError, match=r"no method has 'larg' \(did you mean 'large'"):
        shown("larg")


def shown(schedule: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(overview(load_scale("paper"), "json", schedule))
    return rows
