"""The ablation studies: every row can be built, and rows share what they do not change."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest

from harness.plan import Plan, make_plan
from harness.study import STUDIES, Scale, Study, StudyRow, load_scale, load_study
from methods.errors import InputError
from methods.networks.pretraining import count_parameters
from methods.parts.decoder import Prompting, Transformer
from methods.parts.masking import Random, SemanticAware
from methods.parts.target import Pixels

ABLATIONS = ("milan", "beitv2", "maskdistill")


@pytest.fixture
def scale(tmp_path: Path) -> Scale:
    """The mini scale with a second teacher."""
    path = tmp_path / "mini.toml"
    slip = '[teachers.slip]\ntype = "ClipTraining"\nimage_image_weight = 1.0\n'
    path.write_text(f'base = "mini"\n{slip}')
    return load_scale(str(path))


def kinds(plan: Plan) -> Counter[str]:
    return Counter(stage.kind for stage in plan.stages.values())


def test_every_study_of_the_package_loads() -> None:
    assert {path.stem for path in STUDIES.glob("*.toml")} >= {"comparison", *ABLATIONS}
    for path in STUDIES.glob("*.toml"):
        assert load_study(path.stem).title


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_row_builds_and_is_another(name: str, scale: Scale) -> None:
    plan = make_plan(load_study(name), scale)
    assert len({row.stages["pretrain"].key for row in plan.rows}) == len(plan.rows)
    assert sum(not row.changed for row in plan.rows) == 1, "the default row"
    for row in plan.rows:
        frozen = {role: stage.task for role, stage in row.stages["pretrain"].needs.items()}
        assert count_parameters(row.value, frozen) > 0


def test_milans_rows_are_cells_of_three_switches(scale: Scale) -> None:
    rows = make_plan(load_study("milan"), scale).rows
    cells = [
        (
            "pixels" if isinstance(row.value.objectives[0].target, Pixels) else row.value.needs,
            type(row.value.decoder),
            type(row.value.masking),
        )
        for row in rows
    ]
    clip, slip, attention = ("clip",), ("slip",), SemanticAware
    assert cells == [
        ("pixels", Transformer, Random),
        (clip, Transformer, Random),
        ("pixels", Prompting, Random),
        ("pixels", Transformer, attention),
        (clip, Prompting, Random),
        (clip, Transformer, attention),
        ("pixels", Prompting, attention),
        (slip, Prompting, attention),
        (clip, Prompting, attention),
    ]


def test_a_scale_without_slip_says_so() -> None:
    with pytest.raises(InputError, match="study milan, row milan: scale paper has no teacher"):
        make_plan(load_study("milan"), load_scale("paper"))


def test_frozen_networks_are_shared_by_what_they_are(scale: Scale) -> None:
    plan = make_plan(load_study("beitv2"), scale)
    rows = {row.variant: row.stages["pretrain"].needs["vqkd"] for row in plan.rows}
    assert kinds(plan)["tokenizer"] == 5 and kinds(plan)["teacher"] == 2
    assert rows["layer 1"].key == rows["separate heads"].key == rows[""].key
    assert rows["256 codes"].key != rows[""].key and rows["256 codes"].task.codes == 256
    assert rows["256 codes"].needs["clip"].key == rows[""].needs["clip"].key
    assert rows["SLIP"].needs["clip"].key != rows[""].needs["clip"].key
    assert plan.stages[rows["256 codes"].key].name.startswith("vqkd-")
    # The same teacher by another name is the same stage.
    slip = StudyRow("milan", "SLIP", {"objectives.0.target.teacher": "slip"})
    study = dataclasses.replace(load_study("beitv2"), rows=(*load_study("beitv2").rows, slip))
    assert kinds(make_plan(study, scale))["teacher"] == 2


def test_order_of_rows_does_not_change_their_stages(scale: Scale) -> None:
    rows = load_study("beitv2").rows
    keys = [set(make_plan(Study("s", rows=order), scale).stages) for order in (rows, rows[::-1])]
    assert keys[0] == keys[1]
