"""MLflow, where people look: mirrors the store into it, shows it, and reads tables back from it.

The store is what the program believes, so everything here may fail, be late, or be thrown away:
`harness sync` makes MLflow level again from the files alone. Importing this package is cheap;
mlflow itself is loaded when a mirror first opens its server or database.
"""

from harness.tracking.follow import following, forwarding, sync
from harness.tracking.mirror import Mirror, Summary
from harness.tracking.server import default_uri, serve
from harness.tracking.source import MlflowSource

__all__ = [
    "Mirror",
    "MlflowSource",
    "Summary",
    "default_uri",
    "following",
    "forwarding",
    "serve",
    "sync",
]
