"""The bench's rows as Markdown or JSON, and in files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.report.markup import markdown_table
from methods.errors import InputError

Row = Mapping[str, Any]
PARTS = ("data", "teacher", "forward", "backward", "optimiser", "rest")
NOTE = "random images, untrained networks; medians of {steps} steps of {batch} images, {clock} time"


def listed(words: str) -> list[str]:
    """The names in a comma-separated list."""
    return [name.strip() for name in words.split(",") if name.strip()]


def render(rows: Sequence[Row], form: str) -> str:
    """The rows as "md" or "json"."""
    if form == "json":
        return json.dumps(rows, indent=1)
    tables = [measured(rows), counted(rows)]
    tables += [made(rows) for made, name in (
               (compiled, "compiled"), (peers, "peer"), (projected, "projections"))
               if any(row.get(name) for row in rows)]  # fmt: skip
    return "\n\n".join(tables)


def _title(row: Row) -> list[str]:
    return [str(row["name"]), str(row["encoder"]), f"{row['device']} {row['precision']}"]


def measured(rows: Sequence[Row]) -> str:
    """Speed by part, and where the machine's limit is."""
    if not rows:
        return "no rows"
    columns = ["method", "encoder", "device", "images/s", "s/step", *PARTS, "GFLOP/image"]
    columns += ["of fp32 products", "tensors, GB", "largest batch"]
    lines = [
        [
            *_title(row),
            f"{row['images_per_second']:.3g}",
            f"{row['step']:.3g}",
            *(f"{row['seconds'][part]:.3g}" for part in PARTS),
            f"{row['gflop_per_image']:.3g}",
            f"{row['fraction_of_products']:.2f}",
            *_memory(row),
        ]
        for row in rows
    ]
    where = "; ".join(dict.fromkeys(_machine(row) for row in rows))
    return f"{markdown_table(columns, lines)}\n\n{NOTE.format(**rows[0])}; {where}"


def _memory(row: Row) -> tuple[str, str]:
    """Tensors alive in gigabytes and the largest batch, where both were counted."""
    fits = row["largest_batch"]
    if row["peak_bytes"] is None:
        return "-", str(fits["how"])
    return f"{row['peak_bytes'] / 1e9:.3g}", f"{fits['batch']} ({fits['how'].split()[0]})"


def _machine(row: Row) -> str:
    about = row["machine"]
    return (
        f"{about['processor']}, {about['cores']} cores, {about['threads']} threads, "
        f"{about['memory_gb']} GB, torch {about['versions'].get('torch', '?')}, {about['date']}"
    )


def counted(rows: Sequence[Row]) -> str:
    """What the dispatcher saw."""
    columns = ("method", "kernels/step", "MiB/image outside products", "MiB/step besides")
    lines = [
        [
            str(row["name"]),
            f"{row['counts']['kernels']:.0f}",
            f"{row['counts']['moved_image'] / 2**20:.0f}",
            f"{row['counts']['moved_step'] / 2**20:.0f}",
        ]
        for row in rows
    ]
    return markdown_table(columns, lines)


def compiled(rows: Sequence[Row]) -> str:
    """The step with compiled blocks, measured in turn with the eager one."""
    columns = ("method", "precision", "eager, s", "compiled, s", "ratio", "95 % interval",
               "kernels: eager, compiled", "MiB/image outside products", "MiB/step")  # fmt: skip
    lines = [
        [
            str(row["name"]),
            str(row["precision"]),
            f"{row['step']:.3g}",
            f"{found['step']:.3g}",
            f"{found['ratio']:.2f}",
            "{:.2f} to {:.2f}".format(*found["interval"]),
            *_before_and_after(row["counts"], found["counts"]),
        ]
        for row in rows
        if (found := row.get("compiled"))
    ]
    return markdown_table(columns, lines)


def _before_and_after(eager: Row, compiled: Row) -> Iterator[str]:
    for name, unit in (("kernels", 1), ("moved_image", 2**20), ("moved_step", 2**20)):
        yield f"{eager[name] / unit:.0f}, {compiled[name] / unit:.0f}"


def peers(rows: Sequence[Row]) -> str:
    """Our step and the peer's, measured in turn."""
    columns = ("method", "precision", "ours, s", "peer's, s", "peer", "its precision", "ratio",
               "95 % interval", "of products: ours, its", "of its FLOPs: ours")  # fmt: skip
    lines = [
        [
            str(row["name"]),
            str(row["precision"]),
            f"{row['step']:.3g}",
            f"{peer['step']:.3g}",
            f"{peer['name']} {peer['version']}",
            str(peer["precision"]),
            f"{peer['ratio']:.2f}",
            "{:.2f} to {:.2f}".format(*peer["interval"]),
            f"{row['fraction_of_products']:.2f}, {peer['fraction_of_products']:.2f}",
            f"{peer['fraction_of_its_products']:.2f}",
        ]
        for row in rows
        if (peer := row.get("peer"))
    ]
    return markdown_table(columns, lines)


def projected(rows: Sequence[Row]) -> str:
    """Steps on GPUs that are not here: computed."""
    columns = ("method (computed)", "GPUs", "batch each", "ms/step", "products", "traffic",
               "exchange", "images/s", "GB each", "hours", "GPU hours")  # fmt: skip
    lines = []
    for row in rows:
        for method, each in _projections(row):
            name = f"{each['gpus']} x {each['gpu']}"
            if not each["batch"]:
                lines.append([method, name, "does not fit", *[""] * 8])
                continue
            parts = (each[part] for part in ("seconds", "products", "traffic", "exchange"))
            lines.append(
                [
                    method,
                    name,
                    str(each["batch"]),
                    *(f"{1000 * part:.1f}" for part in parts),
                    f"{each['images_per_second']:.0f}",
                    f"{each['peak_bytes'] / 1e9:.1f}",
                    f"{each['hours']:.1f}",
                    f"{each['gpu_hours']:.0f}",
                ]
            )
    return markdown_table(columns, lines)


def _projections(row: Row) -> Iterator[tuple[str, Row]]:
    """The row's projections, and those with its blocks compiled, by the method's name."""
    name = str(row["name"])
    yield from ((name, each) for each in row.get("projections", ()))
    found = row.get("compiled") or {}
    yield from ((f"{name} compiled", each) for each in found.get("projections", ()))


def write(folder: Path, row: Row) -> Path:
    """Keep the row in `folder`, in the file of its setting; see `keep`."""
    peer = f"-{row['peer']['name']}-{row['peer']['precision']}" if row.get("peer") else ""
    busy = "-busy" if row["clock"] == "processor" else ""
    peer += "-compiled" * ("compiled" in row)
    name = f"{row['scale']}-{row['device']}-{row['precision']}-b{row['batch']}{busy}{peer}.json"
    return keep(folder / name, row)


def keep(path: Path, row: Row) -> Path:
    """Write the row to the file, in place of an earlier one of the same name.

    Raises InputError where the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        rows = [each for each in known if each["name"] != row["name"]] + [dict(row)]
        path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--out: {path}: cannot be kept ({error})") from None
    return path


def read(folder: Path) -> list[Row]:
    """Every row kept in `folder`, by file name; InputError for a file that holds none."""
    return [each for path in sorted(folder.glob("*.json")) for each in _rows(path)]


def _rows(path: Path) -> list[Row]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: not a list of the bench's rows")
    return rows
