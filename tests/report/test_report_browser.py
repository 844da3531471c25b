"""The page in a real Chromium: it loads alone, sorts, filters, hides, copies, and fits a phone."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser
from system import missing

from harness.report import StoreSource, render

COPIED = "new Promise(done => { const old = copy; copy = text => { copy = old; done(text); }; %s })"
FIRST = "[...document.querySelectorAll('#comparison tbody tr')].filter(r => !r.hidden)"
NAMES = f"{FIRST}.map(row => row.children[0].textContent)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        missing("chromium is not installed")
    with Browser(program, tmp_path_factory.mktemp("chromium") / "profile") as found:
        yield found


@pytest.fixture
def page(browser: Browser, small: Path, tmp_path: Path) -> Browser:
    """The report of the small study on a desktop's screen."""
    return opened(browser, small, tmp_path / "report.html")


def opened(browser: Browser, store: Path, path: Path, width: int = 1400) -> Browser:
    """The browser with the store's report, written to `path`, on a screen of this width."""
    path.write_text(render(StoreSource(store), format="html"), encoding="utf-8")
    browser.media()
    browser.resize(width, 1000)
    browser.events.clear()
    browser.open(path)
    return browser


def test_it_loads_alone_and_without_complaint(page: Browser) -> None:
    requests = [
        event["params"]["request"]["url"]
        for event in page.events
        if event.get("method") == "Network.requestWillBeSent"
    ]
    assert all(url.startswith("file://") for url in requests)
    assert page.run("document.images.length + document.styleSheets.length") == 1
    complaints = [
        event
        for event in page.events
        if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")
    ]
    assert complaints == []


def test_columns_sort_and_what_is_missing_stays_last(page: Browser) -> None:
    click = "document.querySelector('#comparison th[data-name=lin] button').click()"
    page.run(click)
    assert page.run(NAMES) == ["milan", "beitv2", "mae", "random", "maskdistill", "scratch"]
    page.run(click)
    assert page.run(NAMES) == ["random", "mae", "beitv2", "milan", "maskdistill", "scratch"]
    order = "document.querySelector('#comparison th[data-name=lin]').getAttribute('aria-sort')"
    assert page.run(order) == "ascending"


def test_sorting_an_ablation_leaves_the_default_row_on_top(
    browser: Browser, claimed: Path, tmp_path: Path
) -> None:
    opened(browser, claimed, tmp_path / "report.html")
    names = "[...document.querySelectorAll('#ablation-milan tbody th')].map(th => th.textContent)"
    for name in ("variant", "lin"):
        for _ in range(2):
            head = f"#ablation-milan [data-name={name}] button"
            browser.run(f"document.querySelector('{head}').click()")
            assert browser.run(names) == ["default", "uniform-without-prompting"]


def test_rows_are_filtered(page: Browser) -> None:
    page.run(
        "(box => { box.value = 'CLIP linear'; box.dispatchEvent(new Event('input')); })"
        "(document.querySelector('#comparison [data-filter]'))"
    )
    assert page.run(NAMES) == ["maskdistill"]


def test_hidden_columns_are_not_copied(page: Browser) -> None:
    page.run(
        "for (const box of document.querySelectorAll('#comparison [data-column]'))"
        " if (!['Method', 'lin'].includes(box.parentElement.textContent.trim())) box.click()"
    )
    copied = page.run(COPIED % "document.querySelector('#comparison [data-as=markdown]').click()")
    assert copied.splitlines()[:4] == [
        "| Method | lin |",
        "| --- | ---: |",
        "| milan | **66.4 ± 0.4** |",
        "| beitv2 | <u>61.2 ± 0.3</u> |",
    ]
    latex = page.run(COPIED % "document.querySelector('#comparison [data-as=latex]').click()")
    assert r"\begin{tabular}{lr}" in latex
    assert r"milan & \textbf{66.4 $\pm$ 0.4} \\" in latex
    groups = "[...document.querySelectorAll('#comparison thead tr:first-child th')]"
    assert page.run(f"{groups}.filter(g => !g.hidden).map(g => g.colSpan)") == [1, 1]


def test_the_button_tells_that_it_copied(page: Browser) -> None:
    page.run(
        "navigator.clipboard.writeText = async text => { window.copied = text; };"
        "document.querySelector('#missing [data-copy]').click()"
    )
    page.run("new Promise(done => setTimeout(done, 50))")
    assert page.run("window.copied").startswith("harness run --scale mini --retry ")
    assert page.run("document.getElementById('said').textContent") == "Copied"


@pytest.mark.parametrize("width", [360, 768, 1400])
@pytest.mark.parametrize("name", ["small", "claimed"])
def test_the_page_never_scrolls_sideways(
    browser: Browser, name: str, width: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    opened(browser, request.getfixturevalue(name), tmp_path / "report.html", width)
    assert browser.run("document.documentElement.scrollWidth") <= width
    # What stays in place while a table is scrolled must leave room for the numbers.
    shares = browser.run(
        "[...document.querySelectorAll('.table .wide')].map(wide =>"
        " wide.querySelector('tbody th').offsetWidth / wide.clientWidth)"
    )
    assert len(shares) == {"small": 1, "claimed": 4}[name]
    assert max(shares) <= 0.5


def test_a_phone_shows_a_row_of_numbers_at_a_glance(
    browser: Browser, claimed: Path, tmp_path: Path
) -> None:
    opened(browser, claimed, tmp_path / "report.html", 390)
    shown = (
        "(name => [...document.querySelectorAll(`#${name} thead tr:last-child th`)]"
        ".filter(each => !each.hidden).map(each => each.dataset.name))"
    )
    assert browser.run(f"{shown}('ablation-milan')") == ["variant", "lin", "seeds"]
    assert browser.run(f"{shown}('claims')")[:3] == ["claim", "measure", "effect"]
    heights = "[...document.querySelectorAll('#ablation-milan tbody tr')].map(r => r.offsetHeight)"
    assert max(browser.run(heights)) < 100


def test_dark_and_light_differ_and_can_be_read(page: Browser) -> None:
    style = "getComputedStyle(document.body)"
    colours = {}
    for scheme in ("light", "dark"):
        page.media(prefers_color_scheme=scheme)
        colours[scheme] = (page.run(f"{style}.color"), page.run(f"{style}.backgroundColor"))
    assert colours["light"] != colours["dark"]
    for ink, paper in colours.values():
        assert _contrast(ink, paper) > 7


def test_print_leaves_out_what_paper_cannot_do(page: Browser) -> None:
    page.media("print")
    shown = "getComputedStyle(document.querySelector('#comparison .tools')).display"
    assert page.run(shown) == "none"


def test_no_name_is_cut_at_the_edge_of_a_chart(
    browser: Browser, claimed: Path, tmp_path: Path
) -> None:
    opened(browser, claimed, tmp_path / "report.html")
    assert browser.run("document.querySelectorAll('.charts svg text').length") > 20
    cut = browser.run(
        "[...document.querySelectorAll('.charts svg text')].filter(text => {"
        " const [own, all] = [text, text.ownerSVGElement].map(e => e.getBoundingClientRect());"
        " return own.right > all.right || own.left < all.left; }).map(text => text.textContent)"
    )
    assert cut == []


def test_only_cards_that_are_open_are_printed_open(page: Browser) -> None:
    opened = "[...document.querySelectorAll('details.card')].map(card => card.open)"
    page.run("document.querySelector('details.card').open = true")
    before = page.run(opened)
    page.run("dispatchEvent(new Event('beforeprint'))")
    page.call("Page.printToPDF")
    assert page.run(opened) == before
    assert before.count(True) == 1 and len(before) > 3


@pytest.fixture
def gallery(browser: Browser, drawn: Path, tmp_path: Path) -> Browser:
    """A report with pictures of three rows, three strips of four images each."""
    return opened(browser, drawn, tmp_path / "report.html")


PICTURES = "[...document.querySelectorAll('#pictures img')]"


def test_pictures_show_and_say_in_words_what_they_show(gallery: Browser) -> None:
    assert (
        gallery.run(f"{PICTURES}.map(each => [each.complete, each.naturalWidth])")
        == [[True, 396]] * 9
    )
    texts = gallery.run(f"{PICTURES}.map(each => each.alt)")
    assert texts[:3] == [
        "milan: validation images",
        "milan: mask: what the encoder sees",
        "milan: cosine similarity <b>",
    ]
    captions = gallery.run(
        "[...document.querySelectorAll('#pictures figcaption')].map(each => each.textContent)"
    )
    assert captions == [text.partition(": ")[2] for text in texts]
    fetched = [
        event["params"]["request"]["url"].partition(":")[0]
        for event in gallery.events
        if event.get("method") == "Network.requestWillBeSent"
    ]
    assert set(fetched) <= {"file", "data"}


@pytest.mark.parametrize("width", [360, 1400])
def test_pictures_fit_the_screen(gallery: Browser, width: int) -> None:
    gallery.resize(width, 800)
    gallery.run("new Promise(done => setTimeout(done, 200))")
    assert gallery.run("document.documentElement.scrollWidth") <= width
    boxes = gallery.run(f"{PICTURES}.map(each => each.getBoundingClientRect().width)")
    assert all(200 < box <= width for box in boxes)


def test_pictures_are_printed_whole(gallery: Browser, tmp_path: Path) -> None:
    gallery.media("print")
    gallery.resize(1000, 700)
    boxes = gallery.run(f"{PICTURES}.map(each => each.getBoundingClientRect().width)")
    assert all(150 < box <= 1000 for box in boxes)
    style = "getComputedStyle(document.querySelector('#pictures figure')).breakInside"
    assert gallery.run(style) == "avoid"
    document = base64.b64decode(gallery.call("Page.printToPDF", printBackground=True)["data"])
    assert document.count(b"/Subtype /Image") >= 3


def test_hostile_names_run_nothing(browser: Browser, hostile: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(StoreSource(hostile), format="html"), encoding="utf-8")
    browser.events.clear()
    browser.open(path)
    assert browser.run("document.scripts.length") == 1
    opened = [e for e in browser.events if e.get("method") == "Page.javascriptDialogOpening"]
    assert opened == []
    assert "<script>alert(1)</script>" in browser.run("document.title")


def test_a_screenshot_is_not_blank(page: Browser, tmp_path: Path) -> None:
    from PIL import Image

    page.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as image:
        assert image.width > 1300 and image.height > 1500
        colours = image.convert("RGB").resize((200, 200)).getcolors(maxcolors=40_000)
    assert colours is not None and len(colours) > 50


def _contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2 between two `rgb(r, g, b)`."""
    light = sorted((_luminance(each) for each in (one, other)), reverse=True)
    return (light[0] + 0.05) / (light[1] + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(each) / 255 for each in colour[4:-1].split(",")]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
