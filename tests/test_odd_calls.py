"""Command lines, names, streams and folders that nobody meant: one line each, never a traceback."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from harness import cli, tracking
from harness.plan import make_plan
from harness.reconcile import Decision, about_stage
from harness.report.build import build, write
from harness.report.source import StoreSource
from harness.stale import stale
from harness.store import Outcome, Store
from harness.study import load_scale, load_study
from harness.tracking import server
from harness.tracking.server import without_secrets
from harness.tracking.source import MlflowSource
from harness.worker import _attempt
from methods.errors import InputError

LONG = "a" * 300


def told(capsys: Any, *words: object) -> str:
    """What a command that is refused says, in one line."""
    with pytest.raises(SystemExit) as left:
        cli.main([str(word) for word in words])
    said = capsys.readouterr().err
    assert left.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
    return str(said)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--methods", "mae,mae"), "--methods: rows has mae '' twice"),
        (("--study", "milan", "--methods", ","), "--methods: methods or rows must name"),
        (("--schedule", "../x"), "--schedule: "),
        (("--weights", "mae=sha256:"), "row mae: weights: 'sha256:' has not 64 hexadecimal digits"),
        (("--weights", f"mae=sha256:{LONG}"), "row mae: weights: 'sha256:aaa"),
        (("--set", "linear.nosuch=1"), "row milan.linear.nosuch: unknown field"),
        (("--set", "teacher.nosuch=1"), "row milan.teacher.nosuch: unknown field"),
        (("--set", "linear.threads=-5"), "milan-s0: linear.threads: must be 0"),
        (("--set", "pretrain.threads=-5"), "milan-s0: pretrain.threads: must be 0"),
        (("--study", LONG), f"{LONG}.toml"),
        (("--scale", LONG), f"{LONG}.toml"),
        (("--cluster", LONG), f"{LONG}.toml"),
    ],
)
def test_words_that_do_not_fit(words: tuple[str, ...], named: str, capsys: Any) -> None:
    assert named in told(capsys, "run", "--dry-run", *words)


@pytest.mark.parametrize("method", ["../x", "a b", LONG, ""])
def test_an_import_for_no_method(method: str, capsys: Any) -> None:
    assert "no method is called" in told(capsys, "import", "FILE", "--method", method)


@pytest.mark.parametrize(
    ("line", "field"),
    [(f'name = "{LONG}"', "name"), (f'rows = [{{method="mae", variant="{LONG}"}}]', "variant")],
)
def test_a_name_for_which_a_file_has_no_room(
    line: str, field: str, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'methods = ["mae"]\n{line}\n')
    said = told(capsys, "run", "--study", path, "--store", tmp_path / "runs")
    assert "mine.toml" in said and f"{field} may have at most 100 bytes" in said


@pytest.mark.parametrize("stem", ["a\nb", "a\udcff", "a b", "$(id)"])
def test_a_scale_of_an_odd_name(stem: str, tmp_path: Path) -> None:
    path = tmp_path / f"{stem}.toml"
    path.write_text('base = "tiny"\n')
    with pytest.raises(InputError, match="name may hold"):
        load_scale(str(path))


def test_data_where_no_folder_can_be(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").touch()
    words = ("run", "--scale", "tiny", "--store", tmp_path / "runs", "--data", tmp_path / "file")
    assert f"{tmp_path / 'file'}: File exists" in told(capsys, *words)


@pytest.fixture
def planned(tmp_path: Path) -> Store:
    """A store with the plan of one method, and its pretraining's folder."""
    plan = make_plan(load_study("comparison").only(("mae",)), load_scale("tiny"))
    store = Store(tmp_path / "runs").create()
    store.write_plan("comparison", plan.records())
    stage = plan.rows[0].stages["pretrain"]
    store.add(stage, about_stage(plan, stage, {}))
    return store


def test_a_log_or_a_folder_that_cannot_be_opened(planned: Store, capsys: Any) -> None:
    folder = next(planned.folders())
    log = folder / "attempts" / planned.begin_attempt(folder, {}) / "1_0_log.out"
    log.symlink_to(log.name)
    said = told(capsys, "logs", folder.name, "--store", planned.root)
    assert f"{log}: Too many levels of symbolic links" in said
    (planned.root / "linear").symlink_to("linear")
    for command in ("report", "clean"):
        said = told(capsys, command, "--store", planned.root)
        assert f"{planned.root / 'linear'}: cannot be read" in said


def test_a_store_that_is_not_there_has_nothing_to_clean(tmp_path: Path, capsys: Any) -> None:
    assert "no such folder" in told(capsys, "clean", "--store", tmp_path / "run")


@pytest.mark.parametrize("epochs", [10**400, float("nan"), float("inf"), -(2**70)])
def test_a_number_that_no_plan_has(epochs: float, planned: Store) -> None:
    path = planned.root / "studies" / "comparison.json"
    plan = json.loads(path.read_text())
    plan["rows"][0]["epochs"] = epochs
    path.write_text(json.dumps(plan))
    with pytest.raises(InputError, match=r"comparison.json.rows.0.epochs: no number"):
        StoreSource(planned.root).plan("comparison")


def test_a_task_that_is_no_table(planned: Store, tmp_path: Path) -> None:
    path = next(planned.folders()) / "stage.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "task": [[]]}))
    with pytest.raises(InputError, match=f"{path}: task: expected a table"):
        write(StoreSource(planned.root), "comparison", None, "html", tmp_path / "out")


def test_a_name_that_is_not_utf_8_can_be_written(planned: Store, tmp_path: Path) -> None:
    path = planned.root / "studies" / "comparison.json"
    plan = json.loads(path.read_text())
    plan["command"] = ["harness", "run", "--data", "d\udcff"]
    plan["study"]["scale"] = "s\udcff"
    path.write_text(json.dumps(plan))
    write(StoreSource(planned.root), "comparison", None, None, tmp_path / "out")
    assert "s\\udcff" in next((tmp_path / "out").glob("*.html")).read_text()


def test_ctrl_c_before_anything_has_begun(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "parser", interrupted)
    with pytest.raises(SystemExit) as left:
        cli.main(["status"])
    assert left.value.code == 130 and "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_streams_that_the_caller_closed(closed: str, planned: Store) -> None:
    command = f'"$@" {closed}'
    for words in (("status",), ("report",)):
        call = [sys.executable, "-m", "harness.cli", *words, "--store", str(planned.root)]
        done = subprocess.run(["sh", "-c", command, "sh", *call], stderr=subprocess.PIPE, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_behind_the_output(planned: Store) -> None:
    call = [sys.executable, "-m", "harness.cli", "report", "--store", str(planned.root)]
    with open(os.devnull.replace("null", "full"), "w") as full:
        done = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "or where the output goes: No space left on device" in done.stderr


def _plan_with(store: Store, command: list[str]) -> Path:
    path = store.root / "studies" / "comparison.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "command": command}))
    return path


@pytest.mark.parametrize("words", [["--gone"], ["--jobs", "x"], ["--help"]])
def test_a_plan_with_a_command_of_another_version(
    words: list[str], planned: Store, capsys: Any
) -> None:
    path = _plan_with(planned, ["harness", "run", *words])
    assert f"{path}: command: " in told(capsys, "status", "--store", planned.root)


def test_status_from_another_folder_than_the_run(
    planned: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    study = tmp_path / "comparison.toml"
    study.write_text('scale = "tiny"\nmethods = ["mae"]\n')
    _plan_with(planned, ["harness", "run", "--study", "comparison.toml", "--evals", "linear"])
    monkeypatch.chdir("/")
    with pytest.raises(SystemExit) as left:
        cli.main(["status", "--study", str(study), "--store", str(planned.root)])
    assert left.value.code == 0 and capsys.readouterr().out.count("\n") == 2


EVIL = "\x1b]0;x\x07\x1b[2J\n\u202e\x9b31m"


def test_nothing_in_a_store_commands_a_terminal(planned: Store, capsys: Any) -> None:
    folder = next(planned.folders())
    outcome = Outcome("failed", error={"reason": "data", "message": f"m{EVIL}"}, alarms=(EVIL,))
    command = ["harness", "run", "--scale", "tiny", "--methods", "mae"]
    for words in (["status"], ["why", folder.name], command[1:] + ["--dry-run"]):
        planned.finish(folder, outcome)
        _plan_with(planned, command)
        with pytest.raises(SystemExit):
            cli.main([*words, "--store", str(planned.root)])
        out, err = capsys.readouterr()
        assert "31m" in out and all(c.isprintable() for c in (out + err).replace("\n", ""))
    with pytest.raises(InputError) as refused:
        planned.match(f"x{EVIL}")
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize(
    "command", [["rm", "-rf", "/"], ["harness", "run", f"--methods=mae{EVIL}"], ["harness"]]
)
def test_a_command_to_paste_is_ours(command: list[str], planned: Store) -> None:
    _plan_with(planned, command)
    report = build(StoreSource(planned.root), "comparison")
    (first, *_) = (each["command"] for each in report.records if each["command"])
    assert first == "harness run --study comparison --scale tiny"


FULL = """
import os, resource, signal, sys
os.umask(0o002)
from harness.tracking.server import connect
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
try:
    connect(sys.argv[1])
    sys.exit("there was room for all of it")
except Exception as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
assert connect(sys.argv[1]).search_experiments()
"""


def test_a_disk_that_is_full_while_mlflow_s_file_is_made(tmp_path: Path) -> None:
    """Half of its tables would be of no use, and would not be completed, for ever."""
    call = [sys.executable, "-c", FULL, f"sqlite:///{tmp_path / 'mlflow.db'}"]
    done = subprocess.run(
        call, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.iterdir()
    assert path.name == "mlflow.db" and path.stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("finished", {"finished": 1e18}),
        ("finished", {"finished": -1.0}),
        ("cost.seconds", {"cost": {"seconds": 1e308}}),
        ("cost.images", {"cost": {"images": 10**30}}),
        ("metrics.top1", {"metrics": {"top1": -1e300}}),
    ],
)
def test_an_outcome_that_cannot_be_told(field: str, change: Any, planned: Store) -> None:
    """Python has no date of it, or the spread over seeds would overflow."""
    folder = next(planned.folders())
    plain = {"status": "done", "metrics": {"top1": 1.0}, **change}
    (folder / "outcome.json").write_text(json.dumps(plain))
    with pytest.raises(InputError, match=f"outcome.json: {field}: "):
        planned.outcome(folder)


def test_an_attempt_is_known_by_its_folder(planned: Store, tmp_path: Path, capsys: Any) -> None:
    folder = next(planned.folders())
    attempt = planned.begin_attempt(folder, {})
    (folder / "attempts" / attempt / "job.json").write_text("{}")
    assert planned.attempts(folder) == [{"attempt": attempt}]
    (tmp_path / "far.toml").write_text('backend = "slurm"\nslurm_conf = "gone"\n')
    words = ["--scale", "tiny", "--methods", "mae", "--cluster", tmp_path / "far.toml"]
    with pytest.raises(SystemExit) as left:
        cli.main([str(word) for word in ["status", "--store", planned.root, *words]])
    assert left.value.code == 0 and "gone: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e200])
def test_a_result_that_is_no_number_is_a_failure(value: float) -> None:
    ending = _attempt(lambda: {"top1": 3.0, "mIoU": value})
    assert ending == {"reason": "nan", "message": f"mIoU is {value} at the end"}


@pytest.mark.parametrize(
    "address",
    [
        "http://me:pl4nted-s3cret@host:5000/x",
        "http://me:p@pl4nted-s3cret@host:5000",
        "https://me:p/pl4nted-s3cret@host",
        "http://me:p'\"pl4nted-s3cret@host",
        "http://me:p pl4nted-s3cret@host",
        "http://pl4nted-s3cret@host",
        "https://host/?token=pl4nted-s3cret&x=1",
        "https://host/?api_key=pl4nted-s3cret",
    ],
)
def test_no_part_of_a_password_is_told(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"API request to {address}/api failed, user@example.org"
    if " pl4" not in address:
        assert "s3cret" not in without_secrets(text)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    server._secrets.cache_clear()
    told = without_secrets(text)
    server._secrets.cache_clear()
    assert "s3cret" not in told and "host" in told and "user@example.org" in told


def test_a_secret_of_the_environment_is_blotted_out_anywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "pl4nted-s3cret")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "tokenizer")
    text = "http://127.0.0.1:5000/#/runs of the tokenizer, linear@50, cls_token=4, KEY=x"
    server._secrets.cache_clear()
    told = without_secrets("Bearer pl4nted-s3cret!"), without_secrets(text)
    server._secrets.cache_clear()
    assert told == ("Bearer ***!", text)


def test_a_lock_that_another_process_holds(
    planned: Store, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    file = planned.root / "lock"
    monkeypatch.setattr(Store, "lock", lambda self: FileLock(self.root / "lock", timeout=0.1))
    words = ("run", "--scale", "tiny", "--methods", "mae", "--evals", "linear")
    with FileLock(file):
        said = told(capsys, *words, "--store", planned.root, "--data", tmp_path / "data")
    assert f"{file}: another process holds it" in said


def test_a_damaged_file_of_mlflow(planned: Store, capsys: Any) -> None:
    path = planned.root / "mlflow.db"
    path.write_bytes(b"no database" * 1000)
    for words in (["sync"], ["ui", "--port", "0"], ["report", "--source", "mlflow"]):
        said = told(capsys, *words, "--store", planned.root)
        assert f"{path}: no database of MLflow's (file is not a database); remove it" in said


def test_a_server_that_leaves_in_the_midst_of_a_report(planned: Store) -> None:
    """Of its database the table of the curves is gone; its tags are not what we wrote."""
    folder, uri = next(planned.folders()), f"sqlite:///{planned.root / 'mlflow.db'}"
    planned.finish(folder, Outcome("done", {"loss": 1.0}))
    (folder / "metrics.jsonl").write_text('{"step": 1, "time": 1.5, "loss": 2.0}\n')
    assert not tracking.sync(planned, uri).error
    source, key = MlflowSource(uri), folder.name.rpartition("-")[2]
    source.plan("comparison")
    assert source.history(key) and source.outcome(key)["state"] == "done"
    with closing(sqlite3.connect(planned.root / "mlflow.db")) as database, database:
        database.execute("alter table metrics rename column step to gone")
        database.execute("update tags set value = 'x' where key = 'mlflow.harness.outcome'")
    with pytest.raises(InputError, match=f"MLflow at {uri}: .*no such column"):
        source.history(key)
    source.plan("comparison")
    assert source.outcome(key) == {"state": "missing"}


def test_whoever_may_read_a_store_may_read_all_of_it(comparison: Path) -> None:
    files = [path for path in (comparison / "runs").rglob("*") if path.is_file()]
    (comparison / "one").touch()
    mode = (comparison / "one").stat().st_mode & 0o044
    assert [path for path in files if path.stat().st_mode & 0o044 != mode] == []


@pytest.mark.parametrize("commit", ["\udcff", "a\0", EVIL, "--output=MARK", "HEAD", "x" * 10**6])
def test_a_commit_that_is_none_is_not_asked_for(
    commit: str, planned: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stage,) = (each for each in _stages() if each.kind == "pretrain")
    outcome = Outcome("done", commit=commit)
    asked: list[str] = []
    monkeypatch.setattr("harness.stale._changed", lambda word: asked.append(word) or ["evals/x.py"])
    assert list(stale([Decision(stage, planned.root, "done", "", outcome=outcome)])) == []
    assert asked == []


def _stages() -> list[Any]:
    plan = make_plan(load_study("comparison").only(("mae",)), load_scale("tiny"))
    return list(plan.stages.values())
