"""The README's pictures of a study: `python tests/report/screenshots.py STORE FOLDER`.

Needs Debian's Chromium. Draws the report's table and pictures, and MLflow's page of the study, into
FOLDER/*.png. Nothing is written into the store but its MLflow file.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from browser import Browser
from PIL import Image

from harness.report import StoreSource, render

sys.path.insert(0, str(Path(__file__).parents[1] / "tracking"))
from tracking_servers import free_port, wait_for

PROGRAM = "chromium"
PARTS = {
    "report": ("header", "#comparison .wide"),
    "table": ("#comparison .wide",),
    "pictures": ("#pictures h2", "#pictures .pictures"),
}


def main(store: Path, folder: Path) -> None:
    """Every picture, of the store's study `comparison`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "report.html"
        page.write_text(render(StoreSource(store), format="html"), encoding="utf-8")
        with Browser(PROGRAM, Path(scratch) / "profile") as browser:
            browser.resize(1460, 900)  # as wide with a scroll bar as without one
            browser.open(page)
            browser.run("new Promise(done => setTimeout(done, 1000))")
            for name, selectors in PARTS.items():
                browser.screenshot(folder / f"{name}.png", *selectors)
            with served(store, Path(scratch) / "ui.log") as address:
                browser.resize(1500, 560)
                mlflow(browser, address, folder / "mlflow.png")
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            small = image.convert("RGB")
        small.save(path, optimize=True)
        print(path, f"{path.stat().st_size / 1000:.0f} kB")


def mlflow(browser: Browser, address: str, path: Path) -> None:
    """The study's rows with their results, the first one unfolded."""
    rows = "[...document.querySelectorAll('[role=row]')]"
    browser.call("Page.navigate", url=address)
    browser.wait(f"{rows}.filter(each => each.innerText.includes('-s0')).length > 1")
    browser.run("document.querySelector('[aria-label=Close]')?.click()")
    browser.run("document.querySelector('[aria-label=\"Hide banner\"]')?.click()")
    browser.run(
        f"{rows}.find(each => each.innerText.includes('milan-s0')).querySelector('button').click()"
    )
    browser.wait(f"{rows}.some(each => each.innerText.includes('clip-'))")
    browser.run("new Promise(done => setTimeout(done, 1500))")
    browser.screenshot(path)


@contextmanager
def served(store: Path, log: Path) -> Iterator[str]:
    """`harness ui` over the store, made level first; the address of the study's page."""
    subprocess.run([sys.executable, "-m", "harness.cli", "sync", "--store", store], check=True)
    command = [sys.executable, "-m", "harness.cli", "ui", "--store", str(store)]
    with log.open("wb") as file:
        process = subprocess.Popen([*command, "--port", str(free_port())], stdout=file, stderr=file)
    try:
        wait_for(lambda: "startup complete" in log.read_text(), f"harness ui; see {log}")
        yield re.findall(r"comparison\S*: (\S+)", log.read_text())[0]
    finally:
        process.terminate()
        process.wait(60)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
