"""Any text in place of a file: it is read, or refused in one line that names it.

Each test tries 120 inputs, and 5000 in the long suite: valid files in which values were deleted,
doubled, renamed, swapped or replaced by others of another type or size, files cut or with bytes
changed, and random texts. An error of any other class than InputError or StageError, or taking more
than 20 s for one input, fails the test.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from mutations import COUNTS, attempt, damaged, jsons, tomls, try_all

from harness import published
from harness.advice import explain
from harness.backends import Attempt, JobState
from harness.backends.local import LocalBackend
from harness.backends.slurm import SlurmBackend
from harness.cluster import PROFILES, load_cluster
from harness.liveness import state_of
from harness.ownership import Ownership
from harness.plan import make_plan
from harness.reconcile import Decision, failures, live_jobs
from harness.report.build import as_text, build
from harness.report.source import StoreSource
from harness.request import parse_changes
from harness.stage import Stage, stage_record, task_from_record
from harness.store import Outcome, Store
from harness.study import SCALES, STUDIES, load_scale, load_study
from harness.tracking import record as tracked
from harness.view import line
from harness.worker import _job
from methods.engine.work import Work
from methods.errors import InputError
from methods.parts.exported import read_exported
from methods.values import to_plain

SOME = pytest.mark.parametrize("count", COUNTS)
KINDS = ("teacher", "tokenizer", "pretrain", "linear", "finetune", "segmentation", "knn")


def tables(folder: Path) -> list[dict[str, Any]]:
    return [tomllib.loads(path.read_text()) for path in sorted(folder.glob("*.toml"))]


def any_of(plains: list[Any], strategy: Any) -> st.SearchStrategy[bytes]:
    return st.one_of(*(strategy(plain) for plain in plains))


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    """A stage of each kind, from the tiny comparison."""
    study = load_study("comparison")
    plan = make_plan(study, load_scale("tiny"))
    return {stage.kind: stage for stage in plan.stages.values()}


@pytest.fixture
def folder(stages: dict[str, Stage], tmp_path: Path) -> Path:
    """The folder of a pretrain stage that has begun."""
    store = Store(tmp_path / "runs").create()
    folder = store.add(stages["pretrain"], {})
    store.begin_attempt(folder, {"backend": "local", "host": "elsewhere", "job_id": "1.1"})
    return folder


@SOME
def test_studies(count: int, tmp_path: Path) -> None:
    path, tiny = tmp_path / "my-study.toml", load_scale("tiny")

    def read(content: bytes) -> bool:
        path.write_bytes(content)
        return attempt(lambda: json.dumps(make_plan(load_study(str(path)), tiny).records()), names)

    names = (path.stem,)
    try_all(any_of(tables(STUDIES), tomls), count, read)


@SOME
def test_scales(count: int, tmp_path: Path) -> None:
    path, study = tmp_path / "my-scale.toml", load_study("comparison")

    def read(content: bytes) -> bool:
        path.write_bytes(content)
        # "study": a scale in which a method's parts no longer fit is told at the study's row.
        return attempt(
            lambda: json.dumps(make_plan(study, load_scale(str(path))).records()),
            (path.stem, "study comparison"),
        )

    try_all(any_of(tables(SCALES), tomls), count, read)


@SOME
def test_cluster_profiles(count: int, tmp_path: Path) -> None:
    path = tmp_path / "my-cluster.toml"
    tried = Attempt("id", tmp_path, "pretrain", "pretrain/mae-s0-0123456789", ("1",), tmp_path)

    def use() -> None:
        cluster = load_cluster(str(path))
        assert all(json.dumps(cluster.job(kind)) for kind in KINDS)
        assert cluster.data_root
        assert SlurmBackend(cluster).script(tried)

    def read(content: bytes) -> bool:
        path.write_bytes(content)
        return attempt(use, (path.stem,))

    try_all(any_of(tables(PROFILES), tomls), count, read)


@SOME
def test_words_of_set(count: int) -> None:
    study, tiny = load_study("comparison"), load_scale("tiny")
    study = study.only(("mae", "milan"))
    fields = ("decoder.depth", "encoder.width", "optimisation.epochs", "linear.holdout", "knn.seed")
    others = ("masking", "objectives", "optimisation", "objectives.0.loss", "a..b", "=", "")
    paths = st.one_of(*(st.sampled_from(each) for each in (fields, fields, others)), st.text())
    values = (
        "3", "{type='L1'}", "{ratio=0.5}", "0x" + "f" * 5000, "nan", "-1", "0", "'x'", "1979-05-27",
        "[" * 2000, "[[1]]", "{}", "true", "1\nx = 2", "\ud800",
    )  # fmt: skip
    words = st.builds(
        lambda path, more, value: f"{path}{more}={value}",
        paths,
        st.sampled_from([*[""] * 9, ".", ".0", ".x", "." + "9" * 5000]),
        st.one_of(st.sampled_from(["1", "2", "8", "64"]), st.sampled_from(values), st.text()),
    )

    def read(word: str) -> bool:
        return attempt(
            lambda: json.dumps(make_plan(study, tiny, parse_changes([word])).records()),
            ("--set", "study comparison"),
        )

    try_all(words, count, read)


@SOME
def test_stage_json(count: int, stages: dict[str, Stage], tmp_path: Path) -> None:
    store = Store(tmp_path)

    def use(folder: Path) -> None:
        found = store.record(folder)
        json.dumps(to_plain(task_from_record(found, str(folder / "stage.json"))))
        tracked.params(found["task"])

    def read(chosen: tuple[Stage, bytes]) -> bool:
        folder = store.root / chosen[0].kind / chosen[0].name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "stage.json").write_bytes(chosen[1])
        return attempt(lambda: use(folder), (str(folder / "stage.json"),))

    inputs = (st.tuples(st.just(each), jsons(stage_record(each, {}))) for each in stages.values())
    try_all(st.one_of(*inputs), count, read)


def outcomes() -> list[dict[str, Any]]:
    cost = {"device": "cpu", "seconds": 3.5, "images": 160, "gflops": 1.5, "resumed": 0}
    done = Outcome("done", {"top1": 50.0, "mIoU": 3.0}, cost, attempt="a", alarms=("old",))
    failed = Outcome("failed", cost=cost, error={"reason": "nan", "message": "loss is nan"})
    return [to_plain(each, declared=Outcome) for each in (done, failed)]


@SOME
def test_outcome_json(count: int, folder: Path, stages: dict[str, Stage]) -> None:
    store = Store(folder.parent.parent)
    older = next((folder / "attempts").iterdir()) / "outcome.json"

    def use() -> None:
        outcome = store.outcome(folder)
        state = "done" if outcome and outcome.done else "failed"
        assert line(Decision(stages["pretrain"], folder, state, "", outcome=outcome))  # type: ignore[arg-type]
        assert explain(store, folder)
        failures(folder)
        json.dumps(StoreSource(store.root).outcome(stages["pretrain"].key))
        store.archive_outcome(folder)

    def read(content: bytes) -> bool:
        older.unlink(missing_ok=True)
        for path in (folder / "outcome.json", older):
            path.write_bytes(content)
            if not attempt(use, (str(path),)):
                path.unlink()
                return False
        return True

    try_all(any_of(outcomes(), jsons), count, read)


@SOME
def test_metrics_jsonl(count: int, folder: Path, stages: dict[str, Stage]) -> None:
    """Lines that a kill has torn are no error: all of it is read, without what is damaged."""
    one = {"step": 1, "time": 1700000000.5, "loss": 0.5, "lr": 1e-3, "progress": 0.1}
    many = [{**one, "step": step, "progress": step / 10} for step in range(1, 9)]
    whole = "".join(json.dumps(each) + "\n" for each in many).encode()
    key = stages["pretrain"].key
    job = JobState("running", "1", "", "node1")
    refused = 0

    def read(content: bytes) -> bool:
        nonlocal refused
        (folder / "metrics.jsonl").write_bytes(content)
        assert line(Decision(stages["pretrain"], folder, "running", "", job=job))
        history = StoreSource(folder.parent.parent).history(key)
        assert list(tracked.points(history)) is not None
        work = Work(folder)
        work.rewind(5)
        after = StoreSource(folder.parent.parent).history(key)
        assert all(each["step"] <= 5 for each in after)
        # try_all wants both: here the second is a line that was left out.
        return len(history) >= len(content.splitlines())

    lines = st.lists(jsons(one), max_size=4).map(b"\n".join)
    try_all(st.one_of(damaged(whole), lines), count, read)


@SOME
def test_job_and_owner_json(count: int, folder: Path, stages: dict[str, Stage]) -> None:
    store = Store(folder.parent.parent)
    job = next((folder / "attempts").glob("*/job.json"))
    owner = folder / "owner.json"
    plan = make_plan(load_study("comparison").only(("mae",)), load_scale("tiny"))
    plan = type(plan)(
        plan.study, plan.scale, plan.rows, {stages["pretrain"].key: stages["pretrain"]}
    )
    full = {
        **json.loads(job.read_text()), "threads": 1, "loader_workers": 0, "device": "cpu",
        "device_batch": 8, "checkpoint_seconds": 3.0, "host": "here", "stopped": "terminated",
    }  # fmt: skip
    Ownership(folder, "a", "1.2@here").take()
    claim = json.loads(owner.read_text())

    def use() -> None:
        live_jobs(store, plan, LocalBackend())
        state_of(store, stages["pretrain"].key)
        state = JobState("running", "1", "", "node1")
        assert line(Decision(stages["pretrain"], folder, "running", "", job=state))
        assert explain(store, folder)
        Ownership(folder, "b", "1").holds()
        _job(job)

    def read(chosen: tuple[Path, bytes]) -> bool:
        path, content = chosen
        job.write_text(json.dumps(full))
        owner.write_text(json.dumps(claim))
        path.write_bytes(content)
        return attempt(use, (path.name,))

    inputs = (st.tuples(st.just(p), jsons(plain)) for p, plain in ((job, full), (owner, claim)))
    try_all(st.one_of(*inputs), count, read)


@SOME
def test_published_csv(count: int, tmp_path: Path) -> None:
    path = tmp_path / "published.csv"
    whole = b"\n".join(published.PUBLISHED.read_bytes().splitlines()[:12])

    def read(content: bytes) -> bool:
        path.write_bytes(content)
        return attempt(
            lambda: published.lookup(published.read(path), "milan", "B", "linear"), (str(path),)
        )

    changed = st.builds(
        lambda place, cell: b",".join([*cells[:place], cell, *cells[place + 1 :]]),
        st.integers(0, 200),
        st.one_of(
            st.sampled_from([b"nan", b"inf", b"-1", b"1e400", b"", b'"', b"\xff", b"a\nb"]),
            st.sampled_from(published.COLUMNS).map(str.encode),
            st.binary(max_size=5),
        ),
    )
    cells = whole.split(b",")
    try_all(st.one_of(damaged(whole), changed), count, read)


@SOME
def test_encoder_json(count: int, tmp_path: Path) -> None:
    plan = make_plan(load_study("comparison"), load_scale("mini"))
    found = []
    for row in plan.rows:
        model, arguments = row.encoder.timm()
        about = {"model": model, "arguments": arguments, "kind": type(row.encoder).__name__}
        found.append({**about, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]})

    def read(content: bytes) -> bool:
        (tmp_path / "encoder.json").write_bytes(content)
        return attempt(lambda: read_exported(tmp_path), (str(tmp_path / "encoder.json"),))

    try_all(any_of(found, jsons), count, read)


@pytest.fixture
def reported(stages: dict[str, Stage], tmp_path: Path) -> Iterator[Path]:
    """A store in which the tiny comparison was planned and nothing was run."""
    plan = make_plan(load_study("comparison").only(("mae", "milan")), load_scale("tiny"))
    store = Store(tmp_path / "runs").create()
    store.write_plan("comparison", {**plan.records(), "command": ["harness", "run"]})
    yield store.root


@SOME
def test_plans_of_studies(count: int, reported: Path) -> None:
    path = reported / "studies" / "comparison.json"
    plain = json.loads(path.read_text())

    def read(content: bytes) -> bool:
        path.write_bytes(content)
        return attempt(
            lambda: as_text(build(StoreSource(reported), "comparison"), "json"),
            ("comparison",),
        )

    try_all(jsons(plain), count, read)


def test_a_value_that_a_check_divides_by_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "tiny"\n[teachers.clip]\npatch = 0\n')
    with pytest.raises(InputError, match="mine.toml.teachers.clip: .*zero"):
        load_scale(str(path))


@pytest.mark.parametrize(
    ("scale", "told"),
    [
        ('[tokenizers.clip]\ntype = "VqkdTraining"', "tokenizers.clip: clip is taught by clip"),
        ('[teachers.clip]\ntype = "PretrainedEncoder"\nmethod = "milan"', "clip is taught by clip"),
        ('[teachers.clip]\ntype = "PretrainedEncoder"\nmethod = "x"', "teachers.clip: no method"),
    ],
)
def test_a_teacher_cannot_be_its_own(scale: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'base = "tiny"\n{scale}\n')
    with pytest.raises(InputError, match=f"scale mine, .*{told}"):
        make_plan(load_study("comparison"), load_scale(str(path)))
