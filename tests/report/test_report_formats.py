"""Every output format: goldens of a small study, names that try to break out, and back again."""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_stores import HOSTILE, curve
from system import missing

from harness.report import FORMATS, StoreSource, build, command, formats, render, write
from harness.report.build import as_text
from harness.report.markup import Safe, element
from harness.report.records import FIELDS
from harness.report.table import Table, clean
from methods.errors import InputError
from methods.values import from_plain

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("format", ["md", "latex", "csv"])
@pytest.mark.parametrize("name", ["small", "paper", "ablation"])
def test_tables_are_as_in_the_golden_files(
    name: str, format: str, request: pytest.FixtureRequest
) -> None:
    """To change them on purpose: delete a file, run the test twice, and look at the difference."""
    study = "milan-ablation" if name == "ablation" else "comparison"
    text = render(StoreSource(request.getfixturevalue(name)), study, None, format)
    path = GOLDEN / f"{name}.{FORMATS[format]}"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        pytest.fail(f"{path} was missing and has been written")
    assert text == path.read_text(encoding="utf-8")


def test_json_comes_back_as_it_went(small: Path) -> None:
    report = build(StoreSource(small), "comparison")
    text = formats.to_json(report.study, report.records, report.tables)
    plain = json.loads(text)
    tables = tuple(from_plain(Table, each) for each in plain["tables"])
    assert (plain["format"], plain["study"]) == (1, report.study)
    assert (plain["records"], tables) == (report.records, report.tables)


def test_json_has_no_nan() -> None:
    text = formats.to_json({}, [{"value": float("nan"), "metrics": {"top1": float("inf")}}], [])
    assert json.loads(text)["records"] == [{"value": None, "metrics": {"top1": None}}]


def test_csv_holds_numbers_spread_and_reasons(small: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(render(StoreSource(small), format="csv"))))
    found = {row["method"]: row for row in rows}
    assert float(found["milan"]["lin"]) == pytest.approx(66.4)
    assert found["milan"]["lin_n"] == "2"
    assert (found["milan"]["lin_state"], found["mae"]["ft"]) == ("done", "")
    assert found["mae"]["ft_state"] == "failed (memory)"
    assert (found["milan"]["published_lin"], found["milan"]["published_lin_status"]) == (
        "79.9",
        "quoted",
    )
    assert {row["scale"] for row in rows} == {"mini"}


@pytest.mark.parametrize("name", ["small", "paper", "ablation", "claimed"])
def test_pandas_reads_numbers_from_csv(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    import pandas

    study = "milan-ablation" if name == "ablation" else "comparison"
    source = StoreSource(request.getfixturevalue(name))
    paths = write(source, study, None, "csv", tmp_path)
    frames = [pandas.read_csv(path) for path in paths[:-1]]  # the last one holds the records
    for table, frame in zip(build(source, study).tables, frames, strict=True):
        assert len(frame) == len(table.lines)
        for column in table.columns:
            kind = frame[column.name].dtype
            assert pandas.api.types.is_numeric_dtype(kind) == column.numeric, column.name


def test_csv_on_one_stream_has_every_table(claimed: Path) -> None:
    text = render(StoreSource(claimed), format="csv")
    parts = text.split("\n\n")
    names = ["claims", "convergence", "comparison", "ablation-milan"]
    assert [part.partition("\n")[0] for part in parts] == [f"# {name}" for name in names]
    for part in parts:
        widths = {len(row) for row in csv.reader(io.StringIO(part.partition("\n")[2]))}
        assert len(widths) == 1


def test_hostile_names_stay_text_in_markdown(hostile: Path) -> None:
    text = render(StoreSource(hostile), format="md")
    assert "\x1b" not in text and "\u202e" not in text
    assert not re.search(r"(?<!\\)<script", text)
    assert not re.search(r"(?<!\\)\$", text), "a formula"
    tables = [block for block in text.split("\n\n") if block.startswith("| ")]
    for block in tables:
        lines = block.splitlines()
        pipes = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines}
        assert len(pipes) == 1, "a name added or broke a cell"


def test_hostile_names_stay_text_in_latex(hostile: Path) -> None:
    text = render(StoreSource(hostile), format="latex")
    assert r"\textless{}script\textgreater{}" in text
    assert r"50\% of \$x\_1\textasciicircum{}2 \{a\textbar{}b\}\textbackslash{}" in text
    assert "{*}{*}bold{*}{*}" in text
    bodies = re.findall(r"\\midrule\n(.*?)\\bottomrule", text, re.DOTALL)
    for body in bodies:
        lines = body.strip().splitlines()
        assert all(line.endswith(r" \\") for line in lines)
        assert len({len(re.findall(r"(?<!\\)&", line)) for line in lines}) == 1


def test_latex_sets_words_in_paragraphs_and_notes_below(claimed: Path) -> None:
    text = render(StoreSource(claimed), format="latex")
    assert re.findall(r"\\label\{tab:(.*)\}", text) == [
        "claims",
        "convergence",
        "comparison",
        "ablation-milan",
    ]
    paragraph = r">\{\\raggedright\\arraybackslash\}p\{\d+em\}"
    tables = re.findall(r"begin\{tabular\}\{(\S*)\}\n(.*?)\\midrule\n(.*?)\\bottomrule", text, re.S)
    for align, head, body in tables:
        columns = re.sub(paragraph, "l", align)
        assert re.fullmatch(r"[lr]+", columns)
        lines = [*head.splitlines()[-1:], *body.splitlines()]
        assert {len(re.findall(r"(?<!\\)&", each)) for each in lines} == {len(columns) - 1}
    claims, *_, changed = re.findall(r"begin\{tabular\}\{(.*)\}", text)
    assert re.fullmatch(rf"(?:{paragraph}|l)+r{{4}}lr", claims)
    assert re.fullmatch(rf"l{paragraph}rr", changed)
    widths = [int(each) for each in re.findall(r"p\{(\d+)em\}", claims)]
    assert len(widths) == 2 and sum(widths) <= 40
    captions = re.findall(r"\\caption\{(.*)\}", text)
    assert captions[0].startswith("Claims. Scale mini") and "Verdict" not in captions[0]
    below = text.split(r"\end{tabular}}")[1]
    assert below.index("Verdict: supported") < below.index(r"\end{table}")


def test_hostile_names_stay_text_in_a_terminal(hostile: Path) -> None:
    text = render(StoreSource(hostile), format="terminal")
    assert "\x1b[31m" not in text and "\u202e" not in text
    assert "<script>alert(1)</script>" in text
    assert "**bold**" in text


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", ["small", "paper", "ablation", "claimed"])
def test_a_narrow_terminal_cuts_no_number(
    name: str, width: int, request: pytest.FixtureRequest
) -> None:
    study = "milan-ablation" if name == "ablation" else "comparison"
    report = build(StoreSource(request.getfixturevalue(name)), study)
    text = as_text(report, "terminal", width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    shown = [cell.strip() for line in text.splitlines() for cell in line.split("│")]
    for table in report.tables:
        for line in table.lines:
            for cell in line.cells:
                assert cell.value is None or cell.text in shown
            assert line.cells[0].text.split()[0] in text


def test_a_continued_table_names_its_rows_again(ablation: Path) -> None:
    report = build(StoreSource(ablation), "milan-ablation")
    lines = [line.split("│") for line in as_text(report, "terminal", 70).splitlines()]
    named = [[cell.strip() for cell in line[1:3]] for line in lines if len(line) > 5]
    assert sum(names == ["milan", "mse"] for names in named) >= 2


def test_hostile_names_stay_one_field_in_csv(hostile: Path, tmp_path: Path) -> None:
    paths = write(StoreSource(hostile), "comparison", None, "csv", tmp_path)
    assert len(paths) == 3
    for path in paths:
        with path.open(newline="", encoding="utf-8") as file:
            widths = {len(row) for row in csv.reader(file)}
        assert len(widths) == 1
        assert path.parent == tmp_path


class Outline(HTMLParser):
    """Every tag, attribute and text outside of style and script."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "input", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_hostile_names_stay_text_in_html(hostile: Path) -> None:
    text = render(StoreSource(hostile), format="html")
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    assert outline.tags.count("script") == 1
    assert not [name for name, _ in outline.attributes if name.startswith("on")]
    assert "\x1b" not in text and "\u202e" not in text


def test_the_page_needs_no_network(small: Path) -> None:
    text = render(StoreSource(small), format="html")
    outline = Outline()
    outline.feed(text)
    links = [v for k, v in outline.attributes if k in ("src", "href", "srcset", "action", "data")]
    assert links == []
    assert not re.search(r"https?://|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_the_page_has_what_a_reader_looks_for(small: Path) -> None:
    text = render(StoreSource(small), format="html")
    for name in ("glance", "comparison", "cost", "missing", "curves", "protocols", "environment"):
        assert f'id="{name}"' in text
    assert "pretrain failed: nan: loss is NaN at step 210" in text
    assert "harness run --scale mini --retry" in text
    assert "not comparable with the published ones" in text
    assert "a processor" in text and "2.9.0" in text


def test_pictures_are_inside_the_page(small: Path, tmp_path: Path) -> None:
    root = shutil.copytree(small, tmp_path / "runs")
    folder = next((root / "pretrain").glob("milan*")) / "pictures"
    folder.mkdir()
    png = b"\x89PNG\r\n\x1a\n" + bytes(20)
    (folder / "mask <b>.png").write_bytes(png)
    text = render(StoreSource(root), format="html")
    assert 'src="data:image/png;base64,iVBORw0KGgo' in text
    assert "milan: mask &lt;b&gt;" in text


def test_an_unfinished_study_renders_in_every_format(tmp_path: Path) -> None:
    from report_stores import Row, make_store

    root = make_store(tmp_path / "runs", [Row("mae", ("missing",))], history=curve)
    for format in FORMATS:
        text = render(StoreSource(root), format=format)
        assert "pending" in text


def test_write_makes_one_file_a_format(ablation: Path, tmp_path: Path) -> None:
    paths = write(StoreSource(ablation), "milan-ablation", None, None, tmp_path / "out")
    assert sorted(path.name for path in paths) == [
        "milan-ablation-mini-ablation-milan.csv",
        "milan-ablation-mini-runs.csv",
        "milan-ablation-mini.csv",
        "milan-ablation-mini.html",
        "milan-ablation-mini.json",
        "milan-ablation-mini.md",
        "milan-ablation-mini.tex",
    ]
    with (tmp_path / "out" / "milan-ablation-mini-runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(FIELDS)
    assert json.loads(rows[-1]["changed"]) == {"objectives.0.loss": "mse"}


def test_what_cannot_be_written_is_named(small: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="--out .*out: comparison-mini.md"):
        write(StoreSource(small), "comparison", None, "md", tmp_path / "out")
    with pytest.raises(InputError, match=r"--format: unknown 'htm' .did you mean 'html'"):
        render(StoreSource(small), format="htm")


def test_the_command_prints_and_writes(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = argparse.Namespace(
        study="studies/comparison.toml",
        scale=None,
        store=small,
        source="store",
        mlflow_uri=None,
        format=None,
        out=None,
    )
    assert command.run(options) == 0
    assert capsys.readouterr().out.startswith("## CLIP distilled\n")
    options.out, options.format = tmp_path / "out", "json"
    assert command.run(options) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "comparison-mini.json")


def test_latex_compiles(
    small: Path, ablation: Path, hostile: Path, claimed: Path, tmp_path: Path
) -> None:
    program = shutil.which("pdflatex")
    if program is None:
        missing("pdflatex is not installed")
    body = "\n".join(
        render(StoreSource(root), study, None, "latex")
        for root, study in (
            (small, "comparison"),
            (ablation, "milan-ablation"),
            (hostile, "comparison"),
            (claimed, "comparison"),
        )
    )
    packages = body.partition("\n")[0].lstrip("% ")
    document = rf"\documentclass{{article}}{packages}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "table.tex").write_text(document, encoding="utf-8")
    subprocess.run(
        [program, "-interaction=nonstopmode", "-halt-on-error", "table.tex"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=300,
    )


def test_elements_escape_what_is_not_safe() -> None:
    assert element("td", "<b> & ", Safe("<i>"), [1.5, None], data_md='"x"', hidden=True) == (
        '<td data-md="&quot;x&quot;" hidden>&lt;b&gt; &amp; <i>1.5</td>'
    )
    assert clean(HOSTILE).startswith("<script>alert(1)</script> & 50% of $x_1^2 {a|b}\\~# **bold**")
