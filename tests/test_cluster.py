"""Cluster profiles: strict, overridden by sbatch's flags, and the job scripts that they lead to."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.backends import Attempt, BackendUnavailable
from harness.backends.slurm import SlurmBackend
from harness.cluster import PROFILES, Cluster, Resources, load_cluster, minutes, with_flags
from harness.preview import arithmetic
from harness.worker import _job as read_job
from methods.errors import InputError

ATTEMPT = Attempt(
    "20250101-120000-abc123",
    Path("/store/pretrain/milan-s0-0123456789"),
    "pretrain",
    "pretrain/milan-s0-0123456789",
    ("12", "13"),
    Path("/store/snapshots/fedcba9876"),
)
SCRIPT = """\
#!/bin/bash

# Parameters
#SBATCH --chdir=/store/pretrain/milan-s0-0123456789/attempts/20250101-120000-abc123
#SBATCH --comment=20250101-120000-abc123
#SBATCH --cpus-per-task=8
#SBATCH --dependency=afterok:12:13
#SBATCH --exclude=node7
#SBATCH --exclusive
#SBATCH --export=HOME,LANG,LC_ALL,LD_LIBRARY_PATH,LOGNAME,PATH,SHELL,TZ,USER
#SBATCH --gres=gpu:4
#SBATCH --job-name=pretrain/milan-s0-0123456789
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=200G
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/store/pretrain/milan-s0-0123456789/attempts/20250101-120000-abc123/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --reservation=course
#SBATCH --signal=USR2@180
#SBATCH --time=2880
#SBATCH --wckey=''

# setup
module load cuda
export WORD='two words'
export PYTHONPATH=/store/snapshots/fedcba9876"${PYTHONPATH:+:$PYTHONPATH}"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output \
/store/pretrain/milan-s0-0123456789/attempts/20250101-120000-abc123/%j_%t_log.out \
--kill-on-bad-exit=1 --export=ALL --cpus-per-task=8 \
sh -c 'trap "" TERM USR2; exec "$0" "$@"' /shared/venv/bin/python -u -m submitit.core._submit \
/store/pretrain/milan-s0-0123456789/attempts/20250101-120000-abc123
"""


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text('backend = "slurm"\n' + text)
    return str(path)


def test_the_script_of_a_job(tmp_path: Path) -> None:
    profile = """
        partition = "gpu"
        reservation = "course"
        nodes = 1
        gpus = 4
        gpu_flag = "gres"
        cpus = 8
        memory = "200G"
        setup = ["module load cuda"]
        python = "/shared/venv/bin/python"
        [environment]
        WORD = "two words"
        [resources.pretrain]
        nodes = 2
        time = "2-00:00:00"
        [sbatch]
        exclude = "node7"
        exclusive = true
    """
    backend = SlurmBackend(load_cluster(write(tmp_path, profile)))
    assert backend.script(ATTEMPT) == SCRIPT


@pytest.mark.parametrize("name", [path.stem for path in PROFILES.glob("*.toml")])
def test_shipped_profiles_are_valid(name: str) -> None:
    cluster = load_cluster(name)
    assert cluster.name == name
    for kind in ("teacher", "pretrain", "linear", "knn"):
        assert cluster.of(kind).world >= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('partitoin = "gpu"', "mine.toml.partitoin: unknown field (did you mean 'partition'?)"),
        ("nodes = '2'", "mine.toml.nodes: expected a whole number"),
        ("compil = true", "mine.toml.compil: unknown field (did you mean 'compile'?)"),
        ("compile = 'yes'", "mine.toml.compile: expected true or false"),
        ("shard = 'all'", "mine.toml.shard: expected true or false"),
        ("activation_checkpointing = 1", "activation_checkpointing: expected true or false"),
        ("gpu_flag = 'gpus'", "mine.toml.gpu_flag: 'gpus' is not a choice"),
        ("nodes = 0", "nodes must be at least 1"),
        ("gpu = 'H10'", "gpu: no figures of 'H10' (did you mean 'H100'?)"),
        ("time = 'a day'", "time 'a day' is not a time limit"),
        ("time = '5'\ngrace = 290", "grace must lie between 1 s and the time limit - 60 s"),
        ("[resources.pretrian]\nnodes = 2", "no such stage kind (did you mean 'pretrain'?)"),
        ("[resources.knn]\nnode = 2", "resources.knn.node: unknown field (did you mean 'nodes'?)"),
        ("[resources.knn]\nnodes = 0", "resources.knn: nodes must be at least 1"),
        ("[sbatch]\noutput = 'x'", "sbatch.output is taken: logs belong into the stage's folder"),
        ("[sbatch]\noutpu = 'x'", "sbatch.outpu is taken: logs belong into the stage's folder"),
        ("[sbatch]\ndep = 'x'", "sbatch.dep is taken: stages are chained by the plan"),
        ("[sbatch]\nno_requeue = true", "sbatch.no_requeue is taken: use max_requeues = 0"),
        ("[sbatch]\nnodes = 2", "sbatch.nodes is taken: use nodes"),
        ("[sbatch]\nmem = '2G'", "sbatch.mem is taken: use memory"),
        ("[environment]\n'A B' = 'x'", "'A B' is not the name of a variable"),
        ("heal = -1", "heal must be 0 or more, not -1"),
        ("nodes = = 2", "not TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_cluster(write(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_profile_names_the_near_one() -> None:
    with pytest.raises(InputError, match=r"no such profile \(did you mean 'local'\?\)"):
        load_cluster("locale")


def test_flags_override_the_profile_and_its_stage_kinds(tmp_path: Path) -> None:
    text = "gpus = 8\n[resources.knn]\ngpus = 1\nmemory = '10G'\n[sbatch]\nexclude = 'n1'"
    cluster = load_cluster(write(tmp_path, text))
    flags = {"gpus-per-node": "2", "time": "1-12", "partition": "short"}
    changed = with_flags(cluster, flags, {"nice": "100", "exclusive": ""})
    for kind in ("pretrain", "knn"):
        wants = changed.of(kind)
        assert (wants.gpus, wants.tasks_per_node, wants.partition) == (2, 2, "short")
        assert wants.sbatch == {"exclude": "n1", "nice": "100", "exclusive": True}
        assert minutes(wants.time) == 36 * 60
    assert changed.of("knn").memory == "10G"
    with pytest.raises(InputError, match="--nodes two: expected a whole number"):
        with_flags(cluster, {"nodes": "two"}, {})
    with pytest.raises(InputError, match="--time 1: grace must|--time: grace must"):
        with_flags(cluster, {"time": "1"}, {})
    with pytest.raises(InputError, match="--time: local is no profile of a Slurm cluster"):
        with_flags(load_cluster("local"), {"time": "1:00:00"}, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        ("24h", 1440),
        ("2d", 2880),
        ("30:00", 30),
        ("0:30", 1),
        ("24:00:00", 1440),
        ("1:00:01", 61),
        ("2-00", 2880),
        ("1-12:30", 2190),
        ("1-0:0:1", 1441),
    ],
)
def test_time_limits_in_sbatchs_forms(text: str, expected: int) -> None:
    assert minutes(text) == expected


def test_the_slurm_conf_of_a_profile_lies_beside_it(tmp_path: Path) -> None:
    cluster = load_cluster(write(tmp_path, "slurm_conf = '../etc/slurm.conf'"))
    assert cluster.slurm_conf == str(tmp_path.parent / "etc" / "slurm.conf")


def test_the_data_of_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert load_cluster(write(tmp_path, "")).data_root == Path("data")
    assert load_cluster(write(tmp_path, "data = '../sets'")).data_root == Path("../sets")
    assert load_cluster(write(tmp_path, "data = '~/sets'")).data_root == Path("/home/me/sets")


def test_how_a_stage_kind_is_executed_reaches_its_stages(tmp_path: Path) -> None:
    text = "compile = true\n[resources.segmentation]\nactivation_checkpointing = true\nshard = true"
    cluster = replace(load_cluster(write(tmp_path, text)), backend="local")
    wanted = {"pretrain": (True, False, False), "segmentation": (True, True, True)}
    for kind, expected in wanted.items():
        path = tmp_path / f"{kind}.json"
        path.write_text(json.dumps(cluster.job(kind)))
        _, layout, _ = read_job(path)
        assert (layout.compile, layout.activation_checkpointing, layout.shard) == expected


@pytest.mark.parametrize(
    ("batch", "wants", "expected"),
    [
        (4096, {"nodes": 2, "gpus": 8, "device_batch": 128}, "batch 4096 = 16 ranks x 2 x 128"),
        (4096, {"gpus": 8}, "batch 4096 = 8 ranks x 1 x 512"),
        (32, {}, "batch 32 = 1 rank x 1 x 32"),
        (20, {"gpus": 8}, "batch 20 = 8 ranks x 1 x 3 images (not even: some take one less)"),
    ],
)
def test_batch_arithmetic(batch: int, wants: dict[str, int], expected: str) -> None:
    task = SimpleNamespace(optimisation=SimpleNamespace(batch=batch))
    assert arithmetic(task, Resources(**wants)).startswith(expected)


def test_without_slurm_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    backend = SlurmBackend(Cluster(backend="slurm", name="far"))
    with pytest.raises(BackendUnavailable, match="squeue is not installed here"):
        backend.query([])


def test_a_cluster_that_is_not_up_is_told_at_once(tmp_path: Path) -> None:
    backend = SlurmBackend(Cluster(backend="slurm", name="dev", slurm_conf=str(tmp_path / "no")))
    with pytest.raises(BackendUnavailable, match="no: no such file; slurm/dev/up starts"):
        backend.query([])
