"""`harness status` tells of done stages whose code has changed, in a real git repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import harness.stale
from harness.plan import make_plan
from harness.reconcile import Decision, State
from harness.stale import stale
from harness.store import Outcome
from harness.study import Study, load_scale


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Code of two stage kinds, committed, as the harness's own."""
    for name in ("methods/networks/step.py", "evals/probe.py", "README.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one\n")
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    monkeypatch.setattr(harness.stale, "CODE", tmp_path)
    return tmp_path


def git(folder: Path, *words: str) -> str:
    names = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    command = ["git", *names, *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def commit(folder: Path) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "x")
    return git(folder, "rev-parse", "HEAD").strip()


def told(commit: str, state: State = "done") -> list[str]:
    """What is said of a study of MAE whose stages were done at a commit."""
    plan = make_plan(Study("s", methods=("mae",), evals=("linear", "knn")), load_scale("tiny"))
    outcome = Outcome("done" if state == "done" else "failed", commit=commit)
    decisions = [
        Decision(each, Path(), state, "", outcome=outcome) for each in plan.stages.values()
    ]
    return list(stale(decisions))


def test_kinds_whose_code_has_changed_are_told_by_commit(repository: Path) -> None:
    first = git(repository, "rev-parse", "HEAD").strip()
    assert told(first) == []
    (repository / "README.md").write_text("two\n")
    second = commit(repository)
    assert told(first) == []
    (repository / "evals/probe.py").write_text("two\n")  # nobody has committed it yet
    (line,) = told(second)
    assert line.startswith(f"note: computed by code that has changed since {second[:10]}")
    assert "1 linear, 1 knn (git diff" in line and "pretrain" not in line
    (repository / "methods/networks/step.py").write_text("two\n")
    commit(repository)
    assert "1 pretrain, 1 linear, 1 knn" in told(first)[0]
    assert told(first, "failed") == []


def test_without_git_or_the_commit_nothing_is_said(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told("0" * 40) == told("--output=x") == told("") == []
    monkeypatch.setattr(harness.stale, "CODE", tmp_path / "none")
    assert told("HEAD") == []
