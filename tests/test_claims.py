"""The study of claims: its stages, what they share, what is refused, and a small one end to end."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command_line import harness

from harness.claim import Claim
from harness.plan import Plan, make_plan
from harness.study import Study, StudyRow, load_scale, load_study
from methods.errors import InputError
from methods.values import from_plain

SMALL = """
evals = ["linear"]
seeds = [0, 1]
rows = [
  { method = "mae", milestones = [0.5] },
  { method = "mae", variant = "one block", set = { "decoder.depth" = 1 } },
]
[[claims]]
sentence = "Two blocks beat one after half of the schedule"
treatment = "mae"
control = "mae one block"
at = 0.5
[[claims]]
sentence = "One block is cheaper"
treatment = "mae one block"
control = "mae"
metric = "gflops"
expect = "lower"
"""


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(load_study("claims"), load_scale("mini"))


def test_five_seeds_of_seven_rows_share_the_frozen_networks(plan: Plan) -> None:
    assert len(plan.rows) == 7 * 5
    kinds = Counter(stage.kind for stage in plan.stages.values())
    # Two rows are probed at three milestones too.
    assert kinds == {"teacher": 2, "tokenizer": 1, "pretrain": 35, "linear": 35 + 2 * 3 * 5}


def test_rows_without_milestones_share_with_other_studies(plan: Plan) -> None:
    for name, shared in (("comparison", 2), ("milan", 3), ("beitv2", 2)):
        other = make_plan(load_study(name), load_scale("mini")).stages
        kinds = Counter(plan.stages[key].kind for key in other.keys() & plan.stages.keys())
        assert kinds["pretrain"] == kinds["linear"] == shared


def test_rows_are_a_ladder_of_one_factor_a_step(plan: Plan) -> None:
    values = [row.value for row in plan.rows[::5]]
    for lower, upper, factors in zip(
        values, values[1:4], (["objectives"], ["decoder"], ["masking"]), strict=False
    ):
        names = [field.name for field in dataclasses.fields(lower)]
        assert [n for n in names if getattr(lower, n) != getattr(upper, n)] == factors
    assert (
        values[0].needs == ()
        and values[3] == make_plan(Study("s", methods=("milan",)), load_scale("mini")).rows[0].value
    )


def test_a_milestone_changes_no_key_but_its_own(plan: Plan) -> None:
    row = next(row for row in plan.rows if row.variant == "pixels" and row.seed == 0)
    assert list(row.stages) == ["pretrain", "linear@25", "linear@50", "linear@75", "linear"]
    assert row.stages["linear@50"].task == dataclasses.replace(
        row.stages["linear"].task, milestone=0.5
    )
    assert row.stages["pretrain"].task.milestones == (0.25, 0.5, 0.75)
    # Keys of earlier versions: finished work is found again.
    assert row.stages["pretrain"].key == "6b765dd562"
    assert row.stages["linear@25"].key == "ba8bcc52d7"
    assert row.stages["linear"].key == "a7b724fc1f"


def test_the_plan_carries_its_claims(plan: Plan) -> None:
    told = json.loads(json.dumps(plan.records()))["study"]["claims"]
    assert [from_plain(Claim, each) for each in told] == list(plan.study.claims)
    assert {each.expect for each in plan.study.claims} == {"higher", "lower", "no lower"}


def test_fewer_rows_may_run_than_claims_need() -> None:
    study = load_study("claims").only(("beitv2",))
    assert len(make_plan(study, load_scale("mini")).rows) == 2 * 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('treatment = "mea"\ncontrol = "mae"', "claims.0.treatment: the study has no row 'mea'"),
        ('treatment = "mae"\ncontrol = "mea"', "did you mean 'mae'?"),
        ('treatment = "mae"\ncontrol = "mae"\nat = 0.5', "the row 'mae' has no linear@50"),
        ('treatment = "mae"\ncontrol = "mae"\nmetric = "knn"', "the row 'mae' has no knn"),
        ('treatment = "mae"\ncontrol = "mae"\nexpect = "more"', "is not a choice"),
        ('treatment = "mae"\ncontrol = "mae"\nmargin = 1', "margin must be positive with expect"),
        ('treatment = "mae"\ncontrol = "mae"\nat = 2', "at must be above 0 and at most 1"),
    ],
)
def test_a_bad_claim_is_one_line(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    head = 'evals = ["linear"]\nmethods = ["mae"]\n[[claims]]\nsentence = "s"\n'
    path.write_text(head + text)
    with pytest.raises(InputError) as caught:
        load_study(str(path))
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("fields", [{"milestones": (1.0,)}, {"milestones": (0.5, 0.5)}])
def test_bad_milestones_are_refused(fields: Any) -> None:
    with pytest.raises(ValueError, match="milestones"):
        StudyRow("mae", **fields)


def test_released_weights_have_no_milestones() -> None:
    with pytest.raises(ValueError, match="a released checkpoint has none"):
        StudyRow("mae", "released", weights="sha256:00", milestones=(0.5,))
    study = Study("s", rows=(StudyRow("mae", milestones=(0.5,)),)).with_weights("mae", "sha256:00")
    assert study.rows[0].milestones == ()


@pytest.mark.long
def test_a_small_study_of_claims_end_to_end(data: Path, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    words = ("--study", "small.toml", "--scale", "tiny")
    harness("run", *words, "--jobs", 2, "--data", data, cwd=tmp_path)
    for pretrain in (tmp_path / "runs/pretrain").glob("mae-s*"):
        early = (pretrain / "milestones/50/encoder.safetensors").read_bytes()
        assert early != (pretrain / "encoder.safetensors").read_bytes()
    told = json.loads(harness("report", *words, "--format", "json", cwd=tmp_path).stdout)
    assert [table["name"] for table in told["tables"][:2]] == ["claims", "convergence"]
    first, second = (
        [cell["text"] for cell in line["cells"]] for line in told["tables"][0]["lines"]
    )
    assert first[3] == "lin at 50 %" and first[7] == "2"
    assert first[8] in ("supported", "not supported", "undecided") and second[8] == "supported"
    assert harness("run", *words, "--data", data, cwd=tmp_path).stdout.startswith("nothing to do")
    mlflow = harness(
        "report", *words, "--source", "mlflow", "--format", "json", cwd=tmp_path
    ).stdout
    assert json.loads(mlflow)["tables"][0] == told["tables"][0]
