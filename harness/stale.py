"""Stages that were done by code that has changed since; their kind's version did not, or they
would have other keys.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator

from harness.provenance import CODE
from harness.reconcile import Decision
from harness.stage import EVALUATIONS

COMMON = ("methods/data/", "methods/engine/", "methods/parts/")
TEACHERS = (*COMMON, "methods/teachers/")
CODE_OF = {
    "teacher": TEACHERS,
    "tokenizer": TEACHERS,
    "pretrain": (*COMMON, "methods/networks/", "methods/pretrain.py"),
    **dict.fromkeys(EVALUATIONS, (*COMMON, "evals/")),
}
"""Where the code lies that makes the numbers of a kind of stage."""


def stale(decisions: Iterable[Decision]) -> Iterator[str]:
    """A line for people about each commit whose stages' code is another today.

    None where git, or the commit, is missing.
    """
    made: dict[str, Counter[str]] = {}
    for each in decisions:
        commit = each.outcome.commit if each.outcome is not None and each.outcome.done else ""
        if re.fullmatch("[0-9a-f]{7,64}", commit):  # it becomes a word of git's command line
            made.setdefault(commit, Counter())[each.stage.kind] += 1
    for commit, kinds in made.items():
        changed = _changed(commit)
        places = {kind: CODE_OF.get(kind, ()) for kind in kinds}
        old = [kind for kind in kinds if any(path.startswith(places[kind]) for path in changed)]
        if old:
            counts = ", ".join(f"{kinds[kind]} {kind}" for kind in old)
            yield (
                f"note: computed by code that has changed since {commit[:10]}, under the same"
                f" version: {counts} (git diff {commit[:10]} -- methods evals)"
            )


def _changed(commit: str) -> list[str]:
    """Python files that differ from those of `commit`, changes that nobody committed included."""
    command = ["git", "diff", "--name-only", "--end-of-options", commit, "--", "*.py"]
    try:
        done = subprocess.run(
            command, cwd=CODE, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()
