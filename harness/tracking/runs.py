"""The runs of one store in MLflow: found by their tags, made, filled, closed and reopened."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.tracking.record import Point
from harness.tracking.server import without_secrets

CHUNK = 1000  # metrics in one request, MLflow's documented limit
SMALL_CHUNK = 100  # parameters, and as many tags, in one request
OURS = "tags.harness = 'yes'"  # experiments that this program made
ENDED = ("FINISHED", "FAILED", "KILLED")
SAME = 0.01  # relative
NAME = "mlflow.runName"


@dataclass
class Run:
    """What MLflow holds of one run; kept level with what is written, so it is read only once."""

    id: str
    place: str = ""  # the address of its artifacts
    status: str = "RUNNING"
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    latest: dict[str, tuple[int, int, float]] = field(default_factory=dict)  # step, ms, value
    has_data: bool = False
    counts: dict[str, Counter[int]] = field(default_factory=dict)  # values at each step, if asked


class Runs:
    """The runs with the tag `store` in all experiments that this program made.

    `current`: they were read in this pass, in which nobody else writes; before another pass a
    second `harness run` may have made some more.
    """

    def __init__(self, client: Any, store: str) -> None:
        self.client, self.store = client, store
        self.written = 0
        self.current = False
        self.by_key: dict[str, Run] = {}

    def experiment(self, name: str, location: str | None, tags: Mapping[str, str]) -> str:
        """The id of the experiment `name`, made or restored where needed, with these tags."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            made = str(self.client.create_experiment(name, location, dict(tags)))
            self.read()  # a server that lost this one has lost its runs
            return made
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
            self.read()
        for tag, value in tags.items():
            if found.tags.get(tag) != value:
                self.client.set_experiment_tag(found.experiment_id, tag, value)
        return str(found.experiment_id)

    def read(self) -> None:
        """Reads every run of this store. Of twins the older stays and the others are deleted."""
        self.by_key, self.current = {}, True
        for run in self._search(f"tags.store = '{self.store}'"):
            if self.by_key.setdefault(run.tags["key"], run) is not run:
                self.client.delete_run(run.id)

    def _search(self, what: str) -> list[Run]:
        """The runs that the filter finds, the oldest first."""
        ours = pages(self.client.search_experiments, filter_string=OURS)
        experiments = [each.experiment_id for each in ours]
        found = pages(self.client.search_runs, experiments, what) if experiments else []
        found.sort(key=lambda each: (each.info.start_time, each.info.run_id))
        return [_read(each) for each in found]

    def create(
        self, experiment: str, key: str, name: str, tags: Mapping[str, str], started: int
    ) -> Run:
        """A new run that is waiting, known by the tag `key`; or the one that another has made."""
        mine = f"tags.store = '{self.store}' and tags.key = '{key}'"
        if not self.current and (made := self._search(mine)):
            self.by_key[key] = made[0]
            return made[0]
        tags = {**tags, "key": key, "store": self.store}
        started = started or round(time.time() * 1000)
        made = self.client.create_run(experiment, started, dict(tags), run_name=name)
        info = made.info
        run = Run(info.run_id, info.artifact_uri, info.status, {**made.data.tags})
        self.by_key[key] = run
        self.written += 1
        return run

    def replace(self, run: Run) -> None:
        """Deletes a run that holds something else than the store; MLflow can restore it."""
        self.client.set_tag(run.id, "end_reason", "replaced")
        self.client.delete_run(run.id)
        self.by_key = {key: each for key, each in self.by_key.items() if each is not run}
        self.written += 1

    def describe(self, run: Run, tags: Mapping[str, str], params: Mapping[str, str]) -> None:
        """Sets the tags that differ and the parameters that are missing: those never change."""
        from mlflow.entities import Param, RunTag

        new_tags = {k: v for k, v in tags.items() if run.tags.get(k) != v}
        new_params = {k: without_secrets(v) for k, v in params.items() if k not in run.params}
        params_left = [Param(k, v) for k, v in new_params.items()]
        tags_left = [RunTag(k, v) for k, v in new_tags.items()]
        for at in range(0, max(len(params_left), len(tags_left)), SMALL_CHUNK):
            some = slice(at, at + SMALL_CHUNK)
            self.client.log_batch(run.id, params=params_left[some], tags=tags_left[some])
        run.tags.update(new_tags)
        run.params.update(new_params)
        self.written += len(new_tags) + len(new_params)

    def rename(self, run: Run, name: str) -> None:
        """Gives the run its name, where another version of this program gave it another."""
        if run.tags.get(NAME) != name:
            self.client.update_run(run.id, name=name)
            run.tags[NAME] = name
            self.written += 1

    def log_results(self, run: Run, values: Mapping[str, float], when: int) -> None:
        """Final metrics, at step 0: a later attempt's win over an earlier one's."""
        changed = {
            name: value
            for name, value in values.items()
            if not (name in run.latest and _same(run.latest[name][2], value, 0.0))
        }
        self._log(run, [Point(0, when, changed)] if changed else [])

    def forward(self, run: Run, points: Iterable[Point]) -> None:
        """Logs what MLflow lacks of a curve, whole lines at a time.

        Each metric goes on after its own last step, so nothing is there twice; MLflow takes a
        request as a whole or not at all, so after a lost connection nothing is missing.
        """
        self._log(run, list(self._lacking(run, points)))

    def _lacking(self, run: Run, points: Iterable[Point]) -> Iterator[Point]:
        """The lines, with those of their values that MLflow has not.

        A step may have several lines with one metric, such as an evaluation behind the training.
        """
        before: dict[str, tuple[int, int]] = {}  # a metric's last step, how many values it has had
        for point in points:
            values = {}
            for name, value in point.values.items():
                step, count = before.get(name, (-1, 0))
                count = count + 1 if step == point.step else 1
                before[name] = point.step, count
                if count > self._held(run, name, point.step, count):
                    values[name] = value
            if values:
                yield Point(point.step, point.time, values)

    def _held(self, run: Run, name: str, step: int, count: int) -> int:
        """How many of the first `count` values of a metric at a step MLflow has."""
        if name not in run.latest or step > run.latest[name][0]:
            return 0
        if count == 1:
            return 1
        if name not in run.counts:
            history = self.client.get_metric_history(run.id, name)
            run.counts[name] = Counter(each.step for each in history)
        return run.counts[name][step]

    def agrees(self, run: Run, points: Iterable[Point]) -> bool:
        """Whether MLflow's curve is a part, or the whole, of this one.

        A stage that was killed does steps again after its last checkpoint, with the same values
        at another time: MLflow then keeps the first ones. But a stage that was begun afresh, with
        other code, gives other values, and its run must not be a mixture. Only a curve whose last
        point is not the file's own is read back.
        """
        curves = {name: last for name, last in run.latest.items() if "/" not in name}
        if not curves:
            return True
        name = max(curves, key=lambda each: (curves[each][0], each == "loss"))
        step, when, _ = curves[name]
        if any((each.step, each.time) == (step, when) for each in points if name in each.values):
            return True
        name = "loss" if "loss" in curves else name
        history = self.client.get_metric_history(run.id, name)
        theirs = _first((each.step, each.timestamp, each.value) for each in history)
        mine = _first((p.step, p.time, p.values[name]) for p in points if name in p.values)
        return all(_same(theirs[step], mine[step], SAME) for step in theirs.keys() & mine.keys())

    def _log(self, run: Run, points: Iterable[Point]) -> None:
        size = 0
        batch: list[Point] = []
        for point in points:
            if size + len(point.values) > CHUNK and batch:
                self._send(run, batch)
                batch, size = [], 0
            batch.append(point)
            size += len(point.values)
        if batch:
            self._send(run, batch)

    def _send(self, run: Run, points: Iterable[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, point.time, point.step)
            for point in points
            for name, value in point.values.items()
        ]
        self.client.log_batch(run.id, metrics=metrics)
        for each in metrics:
            run.latest[each.key] = (each.step, each.timestamp, each.value)
            if each.key in run.counts:
                run.counts[each.key][each.step] += 1
        self.written += len(metrics)

    def set_status(self, run: Run, status: str, ended: int) -> None:
        """Closes or reopens the run where its status differs."""
        if run.status == status:
            return
        if status in ENDED:
            self.client.set_terminated(run.id, status, ended or round(time.time() * 1000))
        else:
            self.client.update_run(run.id, status)
        run.status = status
        self.written += 1


def _first(values: Iterable[tuple[int, int, float]]) -> dict[int, float]:
    """By step, the first value of those that are each a step, a time and a value."""
    return {step: value for step, _, value in sorted(values, reverse=True)}


def _same(one: float, other: float, tolerance: float) -> bool:
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    return one == other or math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance / 100)


def _read(found: Any) -> Run:
    info, data = found.info, found.data
    latest = {each.key: (each.step, each.timestamp, each.value) for each in data.to_proto().metrics}
    seen = bool(found.inputs and found.inputs.dataset_inputs)
    tags, params = {**data.tags}, {**data.params}
    return Run(info.run_id, info.artifact_uri, info.status, tags, params, latest, seen)


def pages(search: Any, *words: Any, **filters: Any) -> list[Any]:
    """Everything that one of MLflow's searches finds."""
    found: list[Any] = []
    token = None
    while True:
        page = search(*words, max_results=500, page_token=token, **filters)
        found += page
        token = page.token
        if not token:
            return found
