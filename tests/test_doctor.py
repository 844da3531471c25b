"""`harness doctor`: one line a check, exit code 1 for a problem, and a job that tries the rest."""

import os
from pathlib import Path

import pytest
from command_line import harness

from harness import doctor
from harness.cluster import load_cluster
from harness.study import load_scale


def lines(text: str) -> dict[str, str]:
    """What was looked at -> its level."""
    return {line[9:].partition(":")[0]: line[:9].strip() for line in text.splitlines()}


def test_a_healthy_machine(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "mlruns").mkdir()
    done = harness("doctor", "--scale", "tiny", "--smoke", cwd=tmp_path)
    found = lines(done.stdout)
    for what in ("versions", "store", "Patchwork", "PatchworkSegmentation", "rank 0", "checkpoint"):
        assert found[what] == "ok", done.stdout
    assert "problem" not in found.values()
    assert "mlflow migrate-filestore --source mlruns" in done.stdout
    assert list((tmp_path / "runs" / "smoke").iterdir()) == []
    assert list((tmp_path / "data").iterdir()) == []  # nothing was built


def test_what_the_paper_scale_lacks(tmp_path: Path) -> None:
    done = harness(
        "doctor", "--scale", "paper", "--data", "here", "--store", "runs", cwd=tmp_path, check=False
    )
    found = lines(done.stdout)
    assert done.returncode == 1
    assert found["ImageNet"] == found["Ade20k"] == "problem"
    assert "problem  ReleasedClip: here/clip/ViT-B-16.pt" in done.stdout
    assert (
        "warning  ReleasedClip: here/clip/ViT-L-14.pt" in done.stdout
    )  # the comparison does without
    assert "here/imagenet/train does not exist: get ILSVRC2012" in done.stdout
    assert "here/clip/ViT-B-16.pt is missing: fetch OpenAI's" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_scheduler_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = doctor.scheduler(load_cluster("eight-gpu-nodes"), tmp_path)
    assert (found.level, found.what) == ("problem", "eight-gpu-nodes")
    assert "is not installed here" in found.told


def test_a_store_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (found,) = doctor.space(tmp_path / "file" / "runs")
    assert (found.level, found.what) == ("problem", "store")
    assert str(found).startswith(f"problem  store: {tmp_path / 'file'} is not writable")


def test_the_weights_that_only_other_methods_need_are_a_warning(tmp_path: Path) -> None:
    scale = load_scale("paper")
    clip = scale.teachers["clip"]
    assert doctor.released("clip", clip, tmp_path).level == "problem"
    assert doctor.released("none", clip, tmp_path).level == "warning"
    place = tmp_path / "clip" / "ViT-B-16.pt"
    place.parent.mkdir()
    place.write_bytes(os.urandom(10))
    assert "SHA-256 begins with" in doctor.released("clip", clip, tmp_path).told
