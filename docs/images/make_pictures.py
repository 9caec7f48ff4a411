"""
Make the pictures of docs/gallery.md again, after its commands have run in this folder:

    python docs/images/make_pictures.py report.html training.html demo_output/scored

It needs chromium, chromedriver, selenium (`pip install -e .[dev]`) and Pillow.
"""

import base64
import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text
from selenium import webdriver
from selenium.webdriver.common.by import By


HERE = Path(__file__).parent
WIDTH, PHONE = 1300, 390
# File -> id of the part, and the most pixels of it from its beginning.
PARTS = {
    "plane": ("plane", 900),
    "spread": ("distribution", 1200),
    "reading": ("reading", 900),
    "problem": ("problem", 900),
    "choice": ("choice", 1000),
    "compare": ("compare", 500),
}


def main(page: str, training: str, scored: str) -> None:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        show(browser, Path(page), WIDTH, "light")
        bottom = bounds(browser, "teachers")[1]
        save(shoot(browser, 0, bottom), "report_top")
        for name, (part, height) in PARTS.items():
            if part == "reading":
                hover(browser)
            top, end = bounds(browser, part)
            save(shoot(browser, top, min(end, top + height)), f"report_{name}")
        show(browser, Path(training), WIDTH, "light")
        top, end = bounds(browser, "training")
        save(shoot(browser, top, min(end, top + 1250)), "report_training")
        show(browser, Path(page), PHONE, "dark")
        tops = [0, bounds(browser, "plane")[0], bounds(browser, "reading")[0]]
        save(side_by_side([shoot(browser, top, top + 1100) for top in tops]), "report_phone")
        save(terminal(browser, "show", "--dataset_name", scored, "--row", "1"), "show")
    finally:
        browser.quit()


def show(browser: webdriver.Chrome, page: Path, width: int, scheme: str) -> None:
    metrics = {"width": width, "height": 1200, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(page.resolve().as_uri())


def bounds(browser: webdriver.Chrome, part: str) -> tuple[int, int]:
    """Top and bottom of a part of the page."""
    box = browser.find_element(By.ID, part).rect
    return int(box["y"]), int(box["y"] + box["height"])


def hover(browser: webdriver.Chrome) -> None:
    """Show the numbers of a token that the student wouldn't have chosen, in the second trajectory."""
    token = browser.find_elements(By.CSS_SELECTOR, "#reading .trajectory:nth-of-type(2) .tokens .a4[data-t]")[0]
    browser.execute_script("scrollTo(0, arguments[0])", bounds(browser, "reading")[0])
    webdriver.ActionChains(browser).move_to_element(token).pause(0.5).perform()


def shoot(browser: webdriver.Chrome, top: int, bottom: int) -> Image.Image:
    width = browser.execute_script("return innerWidth")
    clip = {"x": 0, "y": top, "width": width, "height": bottom - top, "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    return Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")


def side_by_side(pictures: list[Image.Image], gap: int = 20) -> Image.Image:
    width = sum(picture.width + gap for picture in pictures) - gap
    whole = Image.new("RGB", (width, max(picture.height for picture in pictures)), "#888888")
    for place, picture in enumerate(pictures):
        whole.paste(picture, (place * (picture.width + gap), 0))
    return whole


def terminal(browser: webdriver.Chrome, *words: str) -> Image.Image:
    """What `rsr` prints, as a dark terminal of 100 columns shows it."""
    environment = {
        **os.environ,
        "COLUMNS": "100",
        "FORCE_COLOR": "1",
        "COLORTERM": "truecolor",
        "TERM": "xterm-256color",
    }
    done = subprocess.run(["rsr", *words], capture_output=True, text=True, env=environment, check=True)
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(done.stdout or done.stderr))
    html = console.export_html(inline_styles=True, theme=SVG_EXPORT_THEME)
    style = "<style>body { margin: 22px; } pre { width: max-content; line-height: 1.25; font-size: 14px; }</style>"
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "terminal.html")
        page.write_text(html.replace("<head>", f"<head>{style}"))
        show(browser, page, 900, "dark")
        box = browser.find_element(By.TAG_NAME, "pre").rect
        height = int(box["y"] + box["height"] + 22)
        return shoot(browser, 0, height).crop((0, 0, int(box["width"]) + 44, height))


def save(picture: Image.Image, name: str) -> None:
    # Of many shades of grey and few of each colour, the colours stay: the default method drops them.
    small = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
    small.save(HERE / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
