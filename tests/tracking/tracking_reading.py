"""What the store's own sqlite file holds, read back through MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.store import Store
from harness.tracking.server import connect, own_uri


def runs_of(store: Store) -> dict[str, Any]:
    """Every run by its key; rows by their label."""
    client = connect(own_uri(store.root))
    experiments = [each.experiment_id for each in client.search_experiments()]
    found = {}
    for run in client.search_runs(experiments, max_results=1000):
        tags = run.data.tags
        name = tags["key"] if tags["level"] == "stage" else f"row {tags['label']}"
        assert name not in found, f"{name} is there twice"
        found[name] = run
    return found


def curve(store: Store, key: str, name: str = "loss") -> list[tuple[int, float]]:
    run = runs_of(store)[key]
    history = connect(own_uri(store.root)).get_metric_history(run.info.run_id, name)
    return sorted((each.step, each.value) for each in history)


def of_file(folder: Path, name: str = "loss") -> list[tuple[int, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line[name]) for line in lines]
