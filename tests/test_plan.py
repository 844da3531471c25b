"""Plans: what shares a stage, what a change re-runs, what is refused, and the keys themselves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from harness.plan import Plan, changes_for, make_plan
from harness.request import parse_changes
from harness.stage import Stage, stage_record, task_from_record
from harness.study import Study, StudyRow, load_scale, load_study, plan_name
from methods.errors import InputError

GOLDEN = Path(__file__).parent / "golden_keys.json"


def plan(*changes: str, study: Study | None = None, scale: str = "mini") -> Plan:
    return make_plan(study or load_study("comparison"), load_scale(scale), parse_changes(changes))


def keys(found: Plan) -> dict[str, str]:
    return {f"{stage.kind}/{stage.label}": key for key, stage in found.stages.items()}


def changed(*changes: str) -> set[str]:
    before, after = keys(plan()), keys(plan(*changes))
    return {name for name in before if before[name] != after[name]}


def test_frozen_networks_are_shared_and_parents_come_first() -> None:
    found = plan()
    assert len(found.stages) == 21
    assert [stage.kind for stage in found.stages.values()].count("teacher") == 1
    seen: set[str] = set()
    for key, stage in found.stages.items():
        assert all(needed.key in seen for needed in stage.needs.values())
        seen.add(key)


def test_a_change_of_one_methods_loss_reruns_that_method_only() -> None:
    rows = (StudyRow("maskdistill", set={"objectives.0.loss.beta": 3.0}),)
    methods = ("milan", "beitv2", "mae")
    study = dataclasses.replace(load_study("comparison"), rows=rows, methods=methods)
    before, after = keys(plan()), keys(plan(study=study))
    different = {name for name in before if before[name] != after[name]}
    kinds = ("pretrain", "linear", "finetune", "segmentation")
    assert different == {f"{kind}/maskdistill-s0" for kind in kinds}


def test_a_change_of_an_evaluation_reruns_that_evaluation_only() -> None:
    assert {name.split("/")[0] for name in changed("linear.optimisation.epochs=5")} == {"linear"}


def test_a_change_of_the_teacher_reruns_what_it_reaches() -> None:
    different = changed("teacher.optimisation.epochs=5")
    assert "pretrain/milan-s0" in different and "pretrain/beitv2-s0" in different
    assert "pretrain/mae-s0" not in different and "linear/random-s0" not in different


def test_a_change_of_the_method_is_one_of_pretraining() -> None:
    assert changes_for("pretrain", {"decoder.depth": 2}) == {"method.decoder.depth": 2}
    assert changes_for("linear", {"linear.holdout": 2, "decoder.depth": 2}) == {"holdout": 2}


def test_a_scale_changes_sizes_and_never_a_definition() -> None:
    paper, mini = (plan(scale=scale) for scale in ("paper", "mini"))
    for big, small in zip(paper.rows, mini.rows, strict=True):
        if big.value is None:
            continue
        for name in ("masking", "objectives"):
            assert getattr(big.value, name) == getattr(small.value, name)
        assert type(big.value.decoder) is type(small.value.decoder)
        assert big.encoder.width == 768 and small.encoder.width == 128


def test_seeds_are_rows_that_share_the_frozen_networks() -> None:
    study = dataclasses.replace(load_study("comparison"), seeds=(0, 1, 2))
    found = plan(study=study)
    assert len(found.rows) == 18 and len(found.stages) == 3 * 19 + 2
    assert keys(plan()).items() <= keys(found).items()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("decoder.dept=2", "unknown field (did you mean 'depth'?)"),
        (
            "linear.seed=2",
            "row milan.linear.seed: cannot be set; seeds are the study's (--seeds 0,1,2)",
        ),
        ("name='x'", "row milan.method.name: cannot be set; a method is named by its file"),
        ("encoder.width=-1", "width"),
        ("encoder.heads=5", "heads"),
        ("objectives.0.loss.type=Cosin", "Cosine"),
        ("finetune.optimisation.epochs=zero", "expected a number"),
        ("decoder", "expected path=value"),
        ("=3", "expected path=value"),
    ],
)
def test_bad_changes_name_the_place(change: str, told: str) -> None:
    study = load_study("comparison").only(("milan",))
    with pytest.raises(InputError) as caught:
        plan(change, study=study)
    assert told in str(caught.value)


def test_rows_replace_a_study_list() -> None:
    study = load_study("comparison").only(("mae",))
    assert [row.method for row in plan(study=study).rows] == ["mae", "random", "scratch"]
    assert plan_name(study, "mini") == "comparison"
    assert plan_name(study, "paper") == "comparison-paper"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('methods = ["milan", "masdistill"]', "did you mean 'maskdistill'?"),
        ('method = ["milan"]', "unknown field (did you mean 'methods'?)"),
        ("methods = 3", "methods: expected a list"),
        ("methods = [", "not TOML"),
        ("", "methods or rows must name at least one"),
        ('methods = ["mae"]\nseeds = [1, 1]', "seeds must list at least one, and each once"),
        ('methods = ["mae"]\nevals = ["linea"]', "did you mean 'linear'?"),
        ('[[rows]]\nmethod = "mae"\nvariant = "../up"', "variant may hold letters"),
        ('[[rows]]\nmethod = "mae"\n[[rows]]\nmethod = "mae"', "twice; give it a variant"),
    ],
)
def test_a_bad_study_is_one_line_with_file_and_field(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_study(str(path))
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_scale_is_laid_over_its_base(tmp_path: Path) -> None:
    path = tmp_path / "short.toml"
    path.write_text('base = "mini"\nnote = "short"\n[tasks.linear.optimisation]\nepochs = 1\n')
    scale = load_scale(str(path))
    assert scale.tasks["linear"]["optimisation"]["epochs"] == 1
    below = load_scale("mini").tasks["linear"]["optimisation"]
    assert scale.tasks["linear"]["optimisation"]["batch"] == below["batch"]
    path.write_text(f'base = "{path}"\nnote = "loop"')
    with pytest.raises(InputError, match="cannot be based on itself"):
        load_scale(str(path))


@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_stage_json_gives_the_task_back(scale: str) -> None:
    for stage in plan(scale=scale).stages.values():
        record = json.loads(json.dumps(stage_record(stage, {})))
        task = task_from_record(record, "stage.json")
        assert task == stage.task
        needs = dict(stage.needs)
        assert Stage(stage.kind, "other label", task, needs).key == stage.key == record["key"]


def golden() -> dict[str, Any]:
    return {scale: keys(plan(scale=scale)) for scale in ("mini", "paper")}


def test_keys_are_those_of_earlier_versions() -> None:
    """A key that changes by accident loses finished work; write them anew when it is meant."""
    assert golden() == json.loads(GOLDEN.read_text())


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden(), indent=1) + "\n")


def test_a_field_may_be_shorter_than_the_published_warm_up() -> None:
    plan = make_plan(
        load_study("comparison").only(["maskdistill"]),
        load_scale("mini"),
        {"optimisation.epochs": 2, "decoder": {"type": "LinearHead"}},
    )
    assert next(iter(plan.rows)).value.optimisation.epochs == 2
