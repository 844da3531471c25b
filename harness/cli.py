"""The command line: `harness run`, `harness report` and their smaller companions."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from harness.backends import BackendRefused, BackendUnavailable
from methods.errors import DISK_ERRORS, InputError, StageError, one_line

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

EPILOG = "KEY is a stage folder's name or the beginning of its key, as `harness status` shows them."


def parser() -> argparse.ArgumentParser:
    """Every command and option."""
    top = argparse.ArgumentParser(
        prog="harness",
        description="Pretrains, evaluates and compares masked-image-modelling methods.",
        epilog=EPILOG,
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _run(commands)
    _status(commands)
    _stage_commands(commands)
    _doctor(commands)
    _bench(commands)
    _released(commands)
    _report(commands)
    _tracking(commands)
    return top


def _store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", type=Path, default=Path("runs"), help="where stages are kept")


def _study(parser: argparse.ArgumentParser, default: str | None = "comparison") -> None:
    parser.add_argument("--study", default=default, help="a name, or a TOML file")
    parser.add_argument("--scale", help="mini, tiny, paper or a TOML file (default: the study's)")


def _rows(parser: argparse.ArgumentParser) -> None:
    """What replaces the study's lists."""
    _study(parser)
    parser.add_argument("--methods", help="comma-separated; replaces the study's list")
    parser.add_argument("--evals", help="comma-separated: linear,finetune,segmentation,knn")
    parser.add_argument("--seeds", help="comma-separated")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="changes")
    parser.add_argument("--schedule", default="", help="one of the methods', such as 1600")
    told = "a released checkpoint, or sha256:... of an imported one, instead of pretraining"
    parser.add_argument("--weights", action="append", default=[], metavar="METHOD=FILE", help=told)


def _cluster(parser: argparse.ArgumentParser, default: str | None = "local") -> None:
    told = "" if default else " (default: that of the last run)"
    parser.add_argument(
        "--cluster", default=default, help=f"a name in slurm/, or a TOML file{told}"
    )


def _data(parser: argparse.ArgumentParser) -> None:
    told = "where data sets are kept (default: the profile's data, else data)"
    parser.add_argument("--data", type=Path, help=told)


def _run(commands: Commands) -> None:
    run = commands.add_parser("run", help="run what a study still lacks")
    _rows(run)
    _store(run)
    _cluster(run)
    _data(run)
    run.add_argument("--jobs", type=int, help="stages at once on this machine")
    told = "in one job what sees the same images: batches and teachers are shared, numbers stay"
    run.add_argument("--together", action="store_true", help=told)
    run.add_argument("--retry", action="append", default=[], metavar="KEY")
    run.add_argument("--dry-run", action="store_true", help="say what would run and why")
    run.add_argument("--test-only", action="store_true", help="with --dry-run: ask Slurm when")
    run.add_argument("--watch", action="store_true", help="stay and show the stages on a cluster")
    from harness.cluster import FLAGS

    flags = run.add_argument_group("sbatch's own options, over the profile's")
    for name in FLAGS:
        flags.add_argument(f"--{name}", metavar="VALUE")
    flags.add_argument("--sbatch", action="append", default=[], metavar="KEY=VALUE")


def _status(commands: Commands) -> None:
    status = commands.add_parser("status", help="every stage of a study, and why it failed")
    _rows(status)
    _store(status)
    _cluster(status, default=None)
    status.add_argument("--watch", action="store_true", help="show it until nothing runs")


def _stage_commands(commands: Commands) -> None:
    for name, told in (("logs", "print a stage's log"), ("why", "say why a stage failed")):
        command = commands.add_parser(name, help=told)
        command.add_argument("key", metavar="KEY")
        _store(command)
    cancel = commands.add_parser("cancel", help="stop stages; they save their state")
    cancel.add_argument("keys", metavar="KEY", nargs="*", help="none: the whole study")
    _rows(cancel)
    _store(cancel)
    _cluster(cancel, default=None)
    diff = commands.add_parser("diff", help="the fields in which two stages differ")
    diff.add_argument("keys", metavar="KEY", nargs=2)
    _store(diff)
    clean = commands.add_parser("clean", help="remove checkpoints of stages that are done")
    clean.add_argument("--keep-checkpoints", type=int, default=0, metavar="N")
    clean.add_argument("--dry-run", action="store_true")
    _store(clean)
    shown = commands.add_parser("methods", help="the table of methods and their parts")
    shown.add_argument("--scale", default="paper")
    shown.add_argument("--format", choices=("md", "json"), default="md")
    shown.add_argument("--schedule", default="", help="of the methods that have it")


def _doctor(commands: Commands) -> None:
    doctor = commands.add_parser("doctor", help="whether stages could run here, and what is amiss")
    doctor.add_argument("--scale", default="mini", help="whose data sets and weights to look for")
    _store(doctor)
    _cluster(doctor)
    _data(doctor)
    told = "rows of `harness bench`, for whether the loader keeps up (default: results/bench)"
    doctor.add_argument("--bench", type=Path, metavar="DIR", help=told)
    doctor.add_argument("--smoke", action="store_true", help="run one short job in the profile")
    doctor.add_argument("--wait", type=float, default=900.0, metavar="SECONDS", help="for that job")


def _bench(commands: Commands) -> None:
    bench = commands.add_parser("bench", help="what a training step costs, part by part")
    bench.add_argument("--methods", help="comma-separated; vqkd for the tokenizer's training")
    bench.add_argument("--evals", help="comma-separated: linear,finetune,segmentation")
    told = "images a core decodes and augments in a second instead, beside torchvision"
    bench.add_argument("--loading", action="store_true", help=told)
    told = "what plans, runs with nothing to do, reports and MLflow cost instead, at such sizes"
    bench.add_argument("--driver", nargs="?", const="100,1000,10000", metavar="N,...", help=told)
    bench.add_argument("--scale", default="mini")
    bench.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    bench.add_argument("--batch", type=int, default=8, metavar="N", help="images a step")
    bench.add_argument("--steps", type=int, default=5, metavar="N", help="timed, after two others")
    precisions = ("fp32", "bf16")
    bench.add_argument("--precision", choices=precisions, help="default: the recipe's")
    told = "its step in turn: mmpretrain, where installed; of --evals and vqkd official; one-rate"
    bench.add_argument("--peer", help=told)
    bench.add_argument("--peer-precision", choices=precisions, help="default: the same")
    told = "the same step with compiled blocks in turn"
    bench.add_argument("--compile", action="store_true", help=told)
    told = "one thread, by the processor's time: for a machine that others use"
    bench.add_argument("--busy", action="store_true", help=told)
    told = "project the counted steps onto it: A100 or H100"
    bench.add_argument("--gpu", action="append", default=[], metavar="GPU", help=told)
    bench.add_argument("--format", choices=("md", "json"), default="md")
    bench.add_argument("--out", type=Path, metavar="DIR", help="also keep the rows there")


def _released(commands: Commands) -> None:
    into = commands.add_parser("import", help="a released checkpoint as a finished stage")
    into.add_argument("file", type=Path, metavar="FILE")
    into.add_argument("--method", required=True)
    into.add_argument("--scale", default="paper")
    into.add_argument("--schedule", default="", help="one of the method's, such as large")
    into.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="changes")
    _store(into)
    out = commands.add_parser("export", help="a finished stage's encoder as one file")
    out.add_argument("key", metavar="KEY")
    out.add_argument("--format", choices=("timm", "mmpretrain"), required=True)
    out.add_argument("--out", type=Path, metavar="FILE", help="default: NAME-FORMAT.safetensors")
    _store(out)


def _report(commands: Commands) -> None:
    report = commands.add_parser("report", help="the tables of a study")
    _study(report)
    _store(report)
    report.add_argument("--source", choices=("store", "mlflow"), default="store")
    report.add_argument("--mlflow-uri", help="a tracking server (default: the store's own)")
    report.add_argument("--format", choices=("md", "csv", "json", "latex", "html"))
    report.add_argument("--out", type=Path, metavar="DIR", help="write files instead of printing")


def _tracking(commands: Commands) -> None:
    sync = commands.add_parser("sync", help="bring MLflow level with the store")
    _study(sync, default=None)
    _store(sync)
    sync.add_argument("--mlflow-uri", help="a tracking server (default: the store's own)")
    shown = commands.add_parser("ui", help="browse the store in MLflow")
    _store(shown)
    shown.add_argument("--host", default="127.0.0.1")
    shown.add_argument("--port", type=int, default=5000)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and leaves with its exit code.

    0 done or submitted, 1 a stage failed, 2 bad input, 130 interrupted.
    """
    options = argparse.Namespace()
    try:
        _open_streams()
        options = _asked(sys.argv[1:] if arguments is None else list(arguments))
        from harness import commands

        sys.exit(getattr(commands, f"{options.command}_command")(options))
    except InputError as error:
        sys.exit(_told(str(error), 2))
    except (StageError, BackendUnavailable, BackendRefused) as error:
        sys.exit(_told(str(error), 1))
    except KeyboardInterrupt:
        sys.exit(_told("interrupted; the same command goes on from here", 130))
    except BrokenPipeError:  # `harness report | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        code = 1 if error.errno in DISK_ERRORS else 2
        where = error.filename2 or error.filename or getattr(error, "lock_file", None)
        if code == 2 and where is None:
            raise
        where = where or f"--store {getattr(options, 'store', '.')}, or where the output goes"
        sys.exit(_told(f"{where}: {error.strerror or 'another process holds it'}", code))


def _open_streams() -> None:
    """Opens what the caller has closed (`>&-`): the next file to be opened would stand for it.

    Names that are not UTF-8 are shown all the same.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (as long as the process)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _asked(words: list[str]) -> argparse.Namespace:
    options = parser().parse_args(words)
    options.words = words
    return options


def _told(message: str, code: int) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
