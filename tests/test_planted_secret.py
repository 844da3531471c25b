"""Secrets in the environment of a whole study reach no file of its store, no page and no output.

The tiny comparison that the tests share was run with passwords, tokens and keys in its environment
(tests/command_line.py): stages, logs, submitted jobs, and MLflow's database and files are searched.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from command_line import PLANTED, SECRET, harness

PROFILE = """
backend = "slurm"
name = "far"
partition = "gpu"
setup = ["module load cuda"]
"""


def leaks(folder: Path) -> list[Path]:
    """The files below `folder` that hold the secret, as it is or as MLflow would quote it."""
    words = (SECRET.encode(), SECRET.replace("-", "%2D").encode())
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 100
    return [path for path in files if any(word in path.read_bytes() for word in words)]


def test_no_file_of_the_store_and_no_output_holds_a_secret(comparison: Path) -> None:
    kinds = {path.suffix for path in (comparison / "runs").rglob("*") if path.is_file()}
    assert {".json", ".jsonl", ".out", ".pkl", ".db", ".pt", ".safetensors"} <= kinds
    assert leaks(comparison) == []


def test_no_tag_or_parameter_of_mlflow_holds_a_secret(comparison: Path) -> None:
    """The run was mirrored, into the store's own database and nowhere else."""
    with closing(sqlite3.connect(comparison / "runs" / "mlflow.db")) as database:
        (runs,) = database.execute("select count(*) from runs").fetchone()
        values = database.execute("select value from tags union select value from params")
        told = " ".join(str(value) for (value,) in values)
    assert runs >= 21 and SECRET not in told and "somebody" not in told


def test_reports_and_job_scripts_hold_no_secret(comparison: Path, tmp_path: Path) -> None:
    words = ("report", "--store", comparison / "runs", "--scale", "tiny", "--out", tmp_path / "out")
    done = harness(*words, cwd=tmp_path, variables=PLANTED)
    pages = [path.read_text() for path in (tmp_path / "out").iterdir()]
    assert any("<html" in page for page in pages)
    (tmp_path / "far.toml").write_text(PROFILE)
    dry = ("run", "--scale", "tiny", "--dry-run", "--cluster", tmp_path / "far.toml")
    scripts = harness(*dry, cwd=tmp_path, variables=PLANTED)
    assert "#SBATCH --partition=gpu" in scripts.stdout
    for text in (*pages, done.stdout, done.stderr, scripts.stdout, scripts.stderr):
        assert SECRET not in text


def test_an_address_with_a_password_is_told_without_it(comparison: Path, tmp_path: Path) -> None:
    for uri in (f"http://me:{SECRET}@127.0.0.1:9", f"postgresql://me:{SECRET}@127.0.0.1:9/x"):
        words = ("report", "--source", "mlflow", "--mlflow-uri", uri, "--scale", "tiny")
        done = harness(*words, cwd=tmp_path, check=False)
        assert done.returncode == 2 and "127.0.0.1:9" in done.stderr
        assert SECRET not in done.stderr + done.stdout
