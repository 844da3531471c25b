"""What is worked out from the files, without mlflow; and where numbers come from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness import provenance
from harness.tracking import record
from harness.tracking.server import without_secrets


def test_a_part_s_type_is_the_value_of_the_part() -> None:
    plain = {"loss": {"type": "Cosine", "weight": 1.5}, "sizes": [{"type": "A"}, 2], "none": None}
    assert record.flatten(plain) == {
        "loss": "Cosine",
        "loss.weight": "1.5",
        "sizes.0": "A",
        "sizes.1": "2",
        "none": "null",
    }


def test_empty_containers_and_long_values_are_parameters_too() -> None:
    found = record.params({"method": {"name": "x" * 7000, "objectives": []}, "seed": 3})
    assert found["objectives"] == "[]"
    assert found["seed"] == "3"
    assert len(found["name"]) == 6000


def test_long_tags_come_back_whole() -> None:
    value = {"text": "é\n'\"" * 3000, "number": 1.25}
    tags = record.long_tag("plan", value)
    assert max(map(len, tags.values())) <= 5000
    assert record.read_long_tag("plan", tags) == value
    assert record.read_long_tag("other", tags) is None


def test_a_probe_at_a_milestone_does_not_pass_for_the_rows_result() -> None:
    probes = {1.0: 60.0, 0.25: 40.0}
    views = [
        record.StageView(
            f"key{share}",
            {"kind": "linear", "task": {"milestone": share}},
            {"state": "done", "metrics": {"top1": value}, "cost": {"seconds": 5.0}},
        )
        for share, value in probes.items()
    ]
    assert record.row_metrics(views) == {
        "lin/top1": 60.0,
        "at25/lin/top1": 40.0,
        "cost/seconds": 10.0,
    }


def test_damaged_lines_are_no_points() -> None:
    lines = [{}, {"step": 1}, {"step": "1", "time": 2.0}, {"step": 2, "time": 3.5, "loss": 1}]
    assert list(record.points(lines)) == [record.Point(2, 3500, {"loss": 1.0})]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("done", "FINISHED"),
        ("failed", "FAILED"),
        ("running", "RUNNING"),
        ("queued", "SCHEDULED"),
        ("blocked", "KILLED"),
        ("missing", "KILLED"),
    ],
)
def test_no_state_lies(state: str, expected: str) -> None:
    view = record.StageView("k", {"kind": "linear"}, {"state": state})
    assert record.status(view)[0] == expected


def test_secrets_are_blotted_out_and_words_of_the_field_stay() -> None:
    text = "http://me:pw@host/ cls_token: shape, tokenizer=vqkd API_KEY=abc password: xyz"
    assert without_secrets(text) == (
        "http://***@host/ cls_token: shape, tokenizer=vqkd API_KEY=*** password: ***"
    )


def test_importing_tracking_loads_no_heavy_package() -> None:
    code = (
        "import sys, harness.tracking\n"
        "print([m for m in ('mlflow', 'torch', 'pandas', 'submitit') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_commit_and_a_change_to_it_are_seen(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        options = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        command = ["git", *options, *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def seen() -> tuple[str, bool]:
        provenance._git.cache_clear()
        return provenance.commit(tmp_path), provenance.dirty(tmp_path)

    git("init", "-q")
    (tmp_path / "code.py").write_text("1")
    git("add", "code.py")
    git("commit", "-qm", "first")
    assert seen() == (git("rev-parse", "HEAD"), False)
    (tmp_path / "notes.txt").write_text("untracked files are no change")
    assert not seen()[1]
    (tmp_path / "code.py").write_text("2")
    assert seen() == (git("rev-parse", "HEAD"), True)
    provenance._git.cache_clear()


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (provenance.commit(tmp_path), provenance.dirty(tmp_path)) == ("", False)
    provenance._git.cache_clear()


def test_versions_host_and_device_are_known() -> None:
    versions = provenance.versions()
    assert versions["python"] and versions["numpy"] and versions["mim-harness"]
    assert provenance.host() and provenance.device()
