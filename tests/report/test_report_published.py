"""The published numbers: read strictly, complete, and looked up as the comparison shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import published
from harness.published import METRICS, STATUSES, lookup, read
from methods.errors import InputError

HEADER = ",".join(published.COLUMNS)
GOOD = "milan,ViT-B/16,CLIP-B/16,400,finetune,top1,85.4,published,abstract,"
B, L = "ViT-B/16", "ViT-L/16"

# Copied by hand from the tables of the recipes: method, backbone, epochs, lin, ft, seg; the mark
# says the status.
KEY_NUMBERS = [
    ("milan", B, 400, "79.9†", "85.4", "52.7"),
    ("beitv2", B, 300, "80.1", "85.0", "52.7†"),
    ("beitv2", B, 1600, None, "85.5", "53.1†"),
    ("beitv2-21k", B, 1600, None, "86.5", "53.5†"),
    ("beitv2", L, 300, None, "86.6", None),
    ("beitv2", L, 1600, None, "87.3", "56.7"),
    ("maskdistill", B, 800, None, "85.5†", "54.3†"),
    ("maskdistill", B, 300, "76.3‡", "84.8‡", "52.6‡"),
    ("maskdistill", L, 300, None, "86.8?", "56.3?"),
    ("maskdistill", L, 800, None, "87.1?", "56.5?"),
    ("maskdistill", "ViT-H", 300, None, "88.3", "58.8"),
    ("milan", L, 400, "84.3?", "86.7?", None),
    ("mae", B, 1600, "68.0", "83.6", "48.1"),
    ("mae", B, 400, "62.5‡", "83.1†", None),
    ("mae", B, 800, "65.1‡", "83.3‡", None),
    ("beit", B, 800, "56.7†", "83.2†", "45.6†"),
    ("cae", B, 300, "64.5", "83.6", "48.1"),
    ("cae", B, 800, "68.9", "83.8", "49.7"),
    ("cae", B, 1600, "70.3", "83.9", "50.3"),
    ("simmim", B, 800, None, "83.8", None),
    ("cmae", B, 300, None, "83.8", None),
    ("cmae", B, 1600, None, "84.7", None),
    ("data2vec", B, 800, "60.8†", "84.2†", "48.2†"),
    ("ibot", B, 1600, "79.5", "84.0", "50.0"),
    ("mvp", B, 300, "75.4†", "84.4†", "52.4†"),
    ("caev2", B, 300, "80.5†", "85.3†", "52.9†"),
    ("maskalign", B, 200, None, "85.4", None),
    ("dbot", B, 1600, None, "85.7", "52.9"),
    ("mae", L, 1600, "75.8", "85.9", "53.6"),
    ("cae", L, 1600, "77.8", "86.2", "54.9"),
    ("caev2", L, 300, "81.7†", "86.7†", "55.9†"),
    ("dbot", L, 1600, None, "87.8", "56.2"),
]


@pytest.mark.parametrize("row", KEY_NUMBERS, ids=lambda row: f"{row[0]}-{row[1]}-{row[2]}")
def test_the_key_numbers_are_in_the_file(row: tuple[str, str, int, str, str, str]) -> None:
    method, backbone, epochs, *expected = row
    numbers = read()
    found = [lookup(numbers, method, backbone, e, epochs) for e in ("linear", "finetune")]
    found.append(lookup(numbers, method, backbone, "segmentation", epochs))
    # Where several statuses disagree the better one wins, so only its mark can be shown.
    assert [each and f"{each.value:.1f}{each.mark}" for each in found] == expected


def test_the_comparison_shows_one_schedule_per_method() -> None:
    numbers = read()
    for method, epochs in published.SCHEDULES.items():
        number = lookup(numbers, method, B, "finetune")
        assert number is not None and number.epochs == epochs


def test_the_reproduction_of_milan_is_kept_apart_from_the_paper() -> None:
    found = {n.status: n.value for n in read() if (n.method, n.eval) == ("milan", "linear")}
    assert (found["quoted"], found["reproduction"]) == (79.9, 78.9)


def test_every_row_says_where_it_was_read() -> None:
    numbers = read()
    assert len(numbers) > 190
    assert all(number.source for number in numbers)
    assert {number.status for number in numbers} == set(STATUSES)
    assert {number.eval for number in numbers} == set(METRICS)


def test_a_row_uses_its_own_schedule_where_the_file_has_it() -> None:
    numbers = read()
    assert published.schedule(numbers, "beitv2", B, 1600) == 1600
    assert published.schedule(numbers, "beitv2", B, 8) == 300
    assert published.schedule(numbers, "random", B, None) is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (GOOD.replace("published", "publishd"), "line 3: status: unknown 'publishd' (did you mean"),
        (GOOD.replace("finetune", "fintune"), "line 3: eval: unknown 'fintune' (did you mean"),
        (GOOD.replace("top1", "mIoU"), "line 3: metric: unknown 'mIoU'"),
        (GOOD.replace("85.4", "854"), "line 3: value: 854 is not between 0 and 100"),
        (GOOD.replace("85.4", "85,4"), "line 3: 11 fields where 10 are expected"),
        (GOOD.replace("85.4", "nan"), "line 3: value: nan is not between"),
        (GOOD.replace("85.4", ""), "line 3: value: missing"),
        (GOOD.replace("400", "many"), "line 3: epochs: 'many' is no number"),
        (GOOD.replace("abstract", ""), "line 3: source: missing"),
        (GOOD, "line 3: the same row as line 2"),
        ("", "line 3: 0 fields"),
        ('"open', "not CSV"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "published.csv"
    path.write_text(f"{HEADER}\n{GOOD}\n{line}\n")
    with pytest.raises(InputError) as error:
        read(path)
    assert says in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "published.csv"
    with pytest.raises(InputError, match="cannot be read"):
        read(path)
    path.write_text(HEADER.replace("epochs", "epoch") + "\n")
    with pytest.raises(InputError, match="line 1: unknown column 'epoch' .did you mean 'epochs'"):
        read(path)
    path.write_text("")
    with pytest.raises(InputError, match="line 1: the columns must be"):
        read(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        read(path)
