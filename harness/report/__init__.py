"""Reports: a study's plan, outcomes and published numbers as tables, figures and DataFrames."""

from harness.report.build import FORMATS, Report, build, render, write
from harness.report.command import run
from harness.report.source import Source, StoreSource

__all__ = ["FORMATS", "Report", "Source", "StoreSource", "build", "render", "run", "write"]
