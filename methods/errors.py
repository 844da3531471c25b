"""The two ways to fail: bad input of a user, and a stage that cannot go on."""

from __future__ import annotations

import errno
from typing import Literal, get_args

# What the operating system says of a disk, a mount or a quota, not of this program.
DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO),
    *(errno.ESTALE, errno.ENOTCONN, errno.EXDEV, errno.EBUSY),
)

Reason = Literal[
    "data",
    "needs",
    "nan",
    "teacher",
    "codebook",
    "memory",
    "killed",
    "disk",
    "layout",
    "weights",
    "code",
    "stopped",
]


class InputError(Exception):
    """Something that a user wrote is wrong; the message names the place and what could be meant.

    The command line prints it as one line and leaves with exit code 2.
    """


class StageError(Exception):
    """A stage cannot go on; `reason` is its class and the message names the file, field or metric.

    "stopped" is no failure: the stage saved its state and left because it was asked to.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        if reason not in get_args(Reason):
            raise ValueError(f"unknown reason {reason!r}")
        super().__init__(message)
        self.reason = reason


def one_line(text: str) -> str:
    """`text` on one line, without what would command a terminal; bytes that are no UTF-8 stay.

    Messages and names come from files that others may have written.
    """
    kept = (c if c.isprintable() or "\udc80" <= c <= "\udcff" else " " for c in text)
    return " ".join("".join(kept).split())
