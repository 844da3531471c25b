"""`harness report`: prints a study's tables, or writes them into files."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from harness.report.build import render, write
from harness.report.source import Source, StoreSource


def run(options: argparse.Namespace) -> int:
    """Markdown by default, drawn as a table where a person looks at a terminal.

    Raises InputError for a study, scale, format or folder that does not fit.
    """
    source = source_of(options)
    study, scale = (stem(options.study), options.scale and stem(options.scale))
    if options.out is not None:
        for path in write(source, study, scale, options.format, options.out):
            print(path)
        return 0
    shown = options.format or ("terminal" if sys.stdout.isatty() else "md")
    width = shutil.get_terminal_size().columns if shown == "terminal" else None
    print(render(source, study, scale, shown, width), flush=True)
    return 0


def source_of(options: argparse.Namespace) -> Source:
    """The store, or with `--source mlflow` a tracking server alone."""
    if options.source == "store":
        return StoreSource(options.store)
    from harness.tracking import default_uri
    from harness.tracking.source import MlflowSource

    return MlflowSource(options.mlflow_uri or default_uri(options.store))


def stem(name: str) -> str:
    """Plans are filed under the name of a study, also of one that was given as a file."""
    return Path(name).stem if name.endswith(".toml") else name
