"""A claim as a value: which two rows of a study are compared, by what, and what would bear it out.

`harness.report.claims` tests it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from methods.errors import InputError
from methods.values import did_you_mean


@dataclass(frozen=True)
class Claim:
    """That the row `treatment` differs from the row `control` in one measure, seed by seed.

    treatment, control: rows by method and variant, as in "milan uniform". metric: an evaluation's
    (per cent), or "gflops", the operations of pretraining on one image, forward and backward.
    expect: "higher", "lower", or "no lower" by `margin` or more (non-inferiority). at: the share of
    the treatment's schedule after which it is measured; the control always is at the end of its
    own. better_teacher: the treatment is whichever of the two rows has the better teacher.
    """

    sentence: str
    treatment: str
    control: str
    source: str = ""
    metric: Literal["linear", "finetune", "segmentation", "knn", "gflops"] = "linear"
    expect: Literal["higher", "lower", "no lower"] = "higher"
    margin: float = 0.0
    at: float = 1.0
    better_teacher: bool = False

    def __post_init__(self) -> None:
        if not self.sentence:
            raise ValueError("sentence must say what is claimed")
        if (self.margin > 0) != (self.expect == "no lower"):
            raise ValueError("margin must be positive with expect 'no lower', and 0 without")
        if not 0 < self.at <= 1:
            raise ValueError(f"at must be above 0 and at most 1, not {self.at}")
        if self.at < 1 and (self.metric == "gflops" or self.better_teacher):
            raise ValueError("at must be 1 for gflops and with better_teacher")

    @property
    def evaluation(self) -> str:
        """The stage of the treatment's row that it is measured by; "" for gflops."""
        return "" if self.metric == "gflops" else at_milestone(self.metric, self.at)

    def check(self, stages: Mapping[str, Collection[str]], where: str) -> None:
        """Raise InputError where `stages`, the stages of rows by name, lack what is compared."""
        for name, row, wanted in (
            ("treatment", self.treatment, self.evaluation),
            ("control", self.control, self.evaluation.partition("@")[0]),
        ):
            if row not in stages:
                hint = did_you_mean(row, stages)
                raise InputError(f"{where}.{name}: the study has no row {row!r}{hint}")
            if wanted and wanted not in stages[row]:
                raise InputError(f"{where}: the row {row!r} has no {wanted}")


def at_milestone(kind: str, share: float) -> str:
    """The name of an evaluation of the encoder after `share` of its schedule: `linear@50`."""
    return kind if share == 1 else f"{kind}@{100 * share:g}"
