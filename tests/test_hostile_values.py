"""Values of profiles, studies and stores that would be shell, other lines, or other folders."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.backends import Attempt, BackendRefused
from harness.backends.slurm import INHERITED, SlurmBackend
from harness.cli import main, parser
from harness.cluster import Cluster, load_cluster, with_flags
from harness.plan import make_plan
from harness.report.source import StoreSource
from harness.stage import Stage
from harness.store import Outcome, Store
from harness.study import Study, StudyRow, load_scale, load_study
from methods.errors import InputError

GOLDEN = Path(__file__).parent / "slurm" / "golden" / "hostile.sh"
EVIL = """$(touch MARK) `touch MARK`; touch MARK # '"' "$HOME" \\ && touch MARK"""
PLACE = Path("/a store's $(touch MARK)/pretrain/mae `id`-s0-0123456789")
ATTEMPT = Attempt(
    "20250101-120000-abc123",
    PLACE,
    "pretrain",
    "pretrain/mae $(touch MARK)'s-0123456789",
    ("12",),
    Path("/code; touch MARK"),
)
FIELDS = ("partition", "account", "qos", "constraint", "reservation", "memory", "mail_user")


def hostile_profile() -> Cluster:
    return Cluster(
        backend="slurm",
        name="evil",
        **{name: f"{name} {EVIL}" for name in FIELDS},
        python=f"/my venv/{EVIL}/python",
        slurm_conf=f"/etc/{EVIL}",
        environment={"WORD": EVIL},
        sbatch={"exclude": EVIL, "exclusive": True},
        setup=("GREETING='set up'; export GREETING",),
    )


def test_the_script_of_hostile_values_is_the_golden_one() -> None:
    assert SlurmBackend(hostile_profile()).script(ATTEMPT) == GOLDEN.read_text()


def test_each_option_is_one_word() -> None:
    lines = GOLDEN.read_text().splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    words = [shlex.split(option) for option in options]
    assert all(len(each) == 1 and each[0].startswith("--") for each in words)
    values = dict(each[0].removeprefix("--").partition("=")[::2] for each in words)
    for name in ("partition", "account", "qos", "constraint", "reservation"):
        assert values[name] == f"{name} {EVIL}"
    assert values["job-name"] == ATTEMPT.name and values["exclude"] == EVIL
    assert values["chdir"] == str(ATTEMPT.place)


def test_a_shell_runs_nothing_of_the_values(tmp_path: Path) -> None:
    """The job script itself, in bash, with an `srun` that tells its arguments and environment."""
    stub = tmp_path / "bin" / "srun"
    stub.parent.mkdir()
    stub.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\" > arguments\nenv -0 > environment\n")
    stub.chmod(0o755)
    subprocess.run(
        ["bash", "-c", GOLDEN.read_text()],
        cwd=tmp_path,
        env={"PATH": f"{stub.parent}:/usr/bin:/bin"},
        check=True,
    )
    assert not (tmp_path / "MARK").exists()
    words = (tmp_path / "arguments").read_text().split("\0")
    assert str(ATTEMPT.place / "%j_%t_log.out") in words
    assert f"/my venv/{EVIL}/python" in words and str(ATTEMPT.place) in words
    told = (tmp_path / "environment").read_text().split("\0")
    variables = dict(each.partition("=")[::2] for each in told)
    assert variables["WORD"] == EVIL and variables["SLURM_CONF"] == f"/etc/{EVIL}"
    assert variables["PYTHONPATH"] == "/code; touch MARK"
    assert variables["GREETING"] == "set up"  # setup lines are shell


@pytest.mark.parametrize(
    "evil", ["a\nb", "a\n#SBATCH --uid=0", "\r", "a\x00", "\x1b[2J", "a\u2028b"]
)
def test_what_would_end_a_line_is_refused(evil: str, tmp_path: Path) -> None:
    table = json.dumps(evil)
    wrong = [
        *(f"{name} = {table}" for name in (*FIELDS, "python", "slurm_conf", "data", "name")),
        f"environment = {{ WORD = {table} }}",
        f"sbatch = {{ exclude = {table} }}",
        f"sbatch = {{ {table} = 'x' }}",
        f"resources = {{ pretrain = {{ partition = {table} }} }}",
    ]
    path = tmp_path / "mine.toml"
    for line in wrong:
        path.write_text(f"backend = 'slurm'\n{line}\n")
        with pytest.raises(InputError, match="mine.toml") as refused:
            load_cluster(str(path))
        assert "\n" not in str(refused.value)
    path.write_text("backend = 'slurm'\n")
    with pytest.raises(InputError, match="partition must be one line"):
        with_flags(load_cluster(str(path)), {"partition": evil}, {})


@pytest.mark.parametrize("key", ["exclude=x --uid", "a b", "", "-x", "a;b", "$(id)"])
def test_the_name_of_an_option_is_a_name(key: str) -> None:
    with pytest.raises(ValueError, match="is not the name of an option"):
        Cluster(sbatch={key: "x"})


def test_a_path_with_a_line_break_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = SlurmBackend(Cluster(backend="slurm", name="far"))
    broken = tmp_path / "a\n#SBATCH --uid=0"
    with pytest.raises(BackendRefused, match="cannot stand in a job script"):
        backend.script(Attempt("id", broken, "pretrain", "pretrain/x"))
    broken.mkdir()
    monkeypatch.chdir(broken)
    with pytest.raises(BackendRefused, match="cannot stand in a job script"):
        backend.submit_command("heal", "heal/x", ["true"], ["1"], tmp_path, tmp_path)


OUTSIDE = ("../evil", "../../evil", "/tmp/evil", "a/../../evil", "..", "evil\n", "evil\x00")


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_cannot_leave_the_store(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name may hold"):
        Study(name, methods=("mae",))
    if any(char in name for char in "/\n\x00"):
        with pytest.raises(ValueError, match="variant may hold"):
            StudyRow("mae", name)
        with pytest.raises(InputError, match="cannot be called"):
            Stage("teacher", name, None)
    with pytest.raises(InputError, match="no method is called"):
        make_plan(Study("s", methods=(name,)), load_scale("tiny"))
    with pytest.raises(InputError, match="no stage"):
        Store(tmp_path).match(name)
    with pytest.raises(InputError, match="no study"):
        StoreSource(tmp_path / "a" / "b").plan(name)


def test_a_teachers_role_cannot_leave_the_store(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "tiny"\n[teachers."../../evil"]\ntype = "ClipTraining"\n')
    role = {"masking.teacher": "../../evil", "objectives.0.target.teacher": "../../evil"}
    with pytest.raises(InputError, match=r"a stage cannot be called '../../evil'"):
        make_plan(load_study("comparison").only(("milan",)), load_scale(str(path)), role)


def test_every_folder_of_odd_variants_is_in_the_store(tmp_path: Path) -> None:
    rows = tuple(StudyRow("mae", name) for name in ("..", ". .", "- -", "a..b"))
    plan = make_plan(Study("s", rows=rows), load_scale("tiny"))
    store = Store(tmp_path / "runs").create()
    for stage in plan.stages.values():
        folder = store.add(stage, {})
        assert folder.resolve().parent == (tmp_path / "runs" / stage.kind).resolve()


def test_an_outcome_cannot_say_where_it_is_put(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs").create()
    (stage,) = make_plan(Study("s", methods=("mae",), evals=("linear",)), load_scale("tiny")).rows
    folder = store.add(stage.stages["pretrain"], {})
    store.finish(folder, Outcome("done", attempt="../../../../evil"))
    store.archive_outcome(folder, everything=True)
    assert (folder / "attempts" / "unknown" / "outcome.json").exists()
    assert not (tmp_path / "evil").exists()


def test_a_plan_outside_of_the_store_is_not_read(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "evil.json").write_text("{}")
    with pytest.raises(SystemExit) as left:
        main(["report", "--store", str(tmp_path / "runs"), "--study", "../../evil"])
    assert left.value.code == 2 and "no study" in capsys.readouterr().err


def test_servers_listen_on_this_machine_alone() -> None:
    assert parser().parse_args(["ui"]).host == "127.0.0.1"


def test_jobs_inherit_no_secrets() -> None:
    words = ("TOKEN", "SECRET", "PASSWORD", "KEY", "MLFLOW", "AWS")
    assert not [name for name in INHERITED if any(word in name for word in words)]
