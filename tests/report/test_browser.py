"""The page in a real browser: it looks right at every width, does what it says, and runs nothing of the dataset's."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from rsr_trl.rsr import ERROR, STUDENT, TOKEN_COLUMNS
from tests.report.pages import scored_rows, token_columns


pytestmark = pytest.mark.slow

selenium = pytest.importorskip("selenium.webdriver", reason="selenium isn't installed (pip install -e '.[dev]')")
WebDriverWait = pytest.importorskip("selenium.webdriver.support.wait").WebDriverWait

LONG_NAMES = ("Mixtral-8x22B-Instruct-v0.1-extended-context", "ann", "DeepSeek-R1-Distill-Qwen-32B", "eve")

LOOKS = Path(__file__).with_name("looks.js").read_text(encoding="utf-8")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window, with its console and every request noted."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        pytest.skip("chromium and chromedriver aren't here (Debian: apt-get install chromium chromium-driver)")
    options = selenium.ChromeOptions()
    options.binary_location = programs[0]
    profile = tempfile.mkdtemp(prefix="rsr-trl-browser-")
    for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(programs[1]))
    yield driver
    driver.quit()
    shutil.rmtree(profile, ignore_errors=True)


def show(browser, page, width: int = 1400, scheme: str = "light") -> None:
    """Open a page at a width, in a colour scheme."""
    metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # what earlier pages did
    browser.execute_script("window.earlier = true")
    browser.get(page.report.path.as_uri())
    # On a busy machine `get` has come back before the whole page was there.
    shortly(browser, lambda: browser.execute_script("return !window.earlier && document.readyState === 'complete'"))


def look(browser, what: str):
    """The result of a function of looks.js."""
    return browser.execute_script(f"{LOOKS}\nreturn {what}();")


def shortly(browser, check) -> None:
    """Wait until `check()` holds: a busy machine draws, and reports pointer and keys, when it can."""
    WebDriverWait(browser, 20).until(lambda _: check())


def troubles(browser) -> list[str]:
    """What the console says, and every request beyond the page itself."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    away = [url for url in asked if not url.startswith("data:")][1:]
    return [entry["message"] for entry in browser.get_log("browser")] + away


@pytest.fixture
def full_page(write, tiny_tokenizer, run):
    """A page with every part, of 12 problems and four teachers, some with long names."""
    rows = scored_rows(tiny_tokenizer, 12, LONG_NAMES)
    for row in rows:
        ps = {"p_student": 0.1, "p_teacher": 0.3, "p_trained": 0.2}
        row["provenance_sentences"] = [{"text": row["completion"], "class": kind, **ps} for kind in ("boosted", "")]
    folder = run(rows, 1.0, *(np.random.default_rng(seed).uniform(0.8, 1.2, len(rows)) for seed in (10, 20)))
    row = {"control": "random", "value": 0.5, "control_value": 0.4, "mean": 0.1, "low": 0.05, "high": 0.15}
    row |= {"better": True, "seeds": 3, "problems": 200}
    kinds = [(metric, strategy) for metric in ("correct", "loss") for strategy in ("rsr", "length")]
    table = [row | {"strategy": strategy, "metric": metric} for metric, strategy in kinds]
    pilot = {"table": table, "verdict": ["rsr is better."], "notes": [], "confidence": 0.95}
    (folder / "pilot.json").write_text(json.dumps(pilot))
    return write(rows, rows=[7], run=folder, pilot=folder)


@pytest.mark.parametrize(
    "width, scheme", [(w, "light") for w in (1400, 900, 800, 390, 320)] + [(1400, "dark"), (390, "dark")]
)
def test_it_is_readable_everywhere_and_asks_for_nothing(browser, full_page, width, scheme):
    show(browser, full_page, width, scheme)
    assert all(full_page.sections().values())
    assert look(browser, "overlaps") == []
    browser.execute_script("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert look(browser, "overlaps") == []
    assert look(browser, "faint") == []
    charts = look(browser, "chartText")
    assert min(charts["heights"]) >= (12 if width >= 390 else 10)  # 320: the smallest phones
    assert charts["cut"] == [] and set(charts["drawings"]) == {1}
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == (scheme == "dark")
    ids = browser.execute_script("return [...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(set(ids)) == len(ids)
    assert troubles(browser) == []
    browser.execute_script("document.querySelector('h1').style.marginBottom = '-1.5em'")
    assert look(browser, "overlaps")  # so it would be found


def test_the_table_sorts_both_ways_by_numbers_and_names(browser, full_page):
    show(browser, full_page)

    def column(number: int) -> list[str]:
        rows = browser.find_elements("css selector", "#teachers tbody tr")
        return [text.strip() for text in (row.find_elements("css selector", "th, td")[number].text for row in rows)]

    headings = browser.find_elements("css selector", "#teachers thead button")
    names = [heading.text for heading in headings]
    ratio, tokens = ([float(text) for text in column(names.index(name))] for name in ("RSR", "tokens"))
    assert ratio == sorted(ratio)
    for place, order in ((names.index("RSR"), ratio[::-1]), (names.index("tokens"), sorted(tokens))):
        headings[place].click()
        shortly(browser, lambda place=place, order=order: [float(text) for text in column(place)] == order)
    headings[0].send_keys(selenium.Keys.ENTER)
    shortly(browser, lambda: column(0) == sorted(LONG_NAMES, key=str.lower))
    headings = browser.find_elements("css selector", "#teachers th[aria-sort]")
    sorts = [heading.get_attribute("aria-sort") for heading in headings]
    assert sorts[0] == "ascending" and sorts.count("none") == len(sorts) - 1
    assert troubles(browser) == []


def test_hovering_and_the_keyboard_show_a_token(browser, full_page):
    def actions():
        return selenium.ActionChains(browser)

    show(browser, full_page)
    tip = browser.find_element("id", "tip")
    assert not tip.is_displayed()
    place = next(i for i, (text, attrs) in enumerate(full_page.tokens[0]) if "data-t" in attrs and text.isalpha())
    text, attrs = full_page.tokens[0][place]
    heatmap = browser.find_element("css selector", "#reading .heatmap")
    token = heatmap.find_elements("css selector", ".tokens i")[place]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", token)
    actions().move_to_element(token).perform()
    shortly(browser, tip.is_displayed)
    browser.execute_script("dispatchEvent(new Event('scroll'))")  # of a scroll before the pointer came, arriving late
    probability = 100 * np.exp(-float(attrs["data-s"]))
    assert f"“{text}”" in tip.text and f"rank {attrs['data-r']}, probability" in tip.text
    assert float(tip.text.split("probability ")[1].split("%")[0]) == pytest.approx(probability, rel=6e-3)
    assert f"the student's own choice: “{attrs['data-t']}”" in tip.text
    assert 0 <= tip.rect["x"] and tip.rect["x"] + tip.rect["width"] <= 1400
    actions().move_to_element(browser.find_element("tag name", "h1")).perform()
    shortly(browser, lambda: not tip.is_displayed())

    browser.execute_script("arguments[0].focus({focusVisible: true})", heatmap)
    shortly(browser, tip.is_displayed)
    before = tip.text
    actions().send_keys(selenium.Keys.ARROW_RIGHT).perform()
    shortly(browser, lambda: tip.text != before)
    assert before.startswith("“") and tip.text.startswith("“")
    assert len(browser.find_elements("css selector", ".tokens i.at")) == 1
    browser.execute_script("scrollBy(0, -20)")
    shortly(browser, lambda: not tip.is_displayed())
    actions().send_keys(selenium.Keys.ARROW_RIGHT).perform()
    shortly(browser, tip.is_displayed)
    actions().send_keys(selenium.Keys.ESCAPE).perform()
    shortly(browser, lambda: not tip.is_displayed())
    assert troubles(browser) == []


def test_colour_goes_by_surprisal_or_by_rank(browser, full_page):
    show(browser, full_page)
    colours = "return [...document.querySelectorAll('#reading .tokens i')].map((i) => getComputedStyle(i).background)"
    levels = [attrs["class"].split() for tokens in full_page.tokens[:-4] for _, attrs in tokens]
    for place, kind in ((0, "surprisal"), (1, "rank"), (0, "surprisal")):
        switch = browser.find_element("id", f"by-{kind}")
        switch.click()
        shortly(browser, switch.is_selected)
        pairs = {(level[place], colour) for level, colour in zip(levels, browser.execute_script(colours), strict=True)}
        assert len(pairs) == len({level for level, _ in pairs}) == len({colour for _, colour in pairs}) > 3


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("chart", ["plane", "moved"])
def test_the_legend_shows_one_teacher_alone(browser, full_page, chart, width):
    show(browser, full_page, width)
    button = browser.find_elements("css selector", f"#{chart}-chart .legend button")[1]

    def dim() -> list[tuple[str, bool]]:
        """Series and whether it is dim, of each group of marks that can be seen."""
        return browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].filter((g) => g.checkVisibility())"
            ".map((g) => [g.dataset.series, g.classList.contains('dim')])",
            f"#{chart}-chart g[data-series]",
        )

    assert len({series for series, _ in dim()}) == len(LONG_NAMES)
    button.click()
    shortly(browser, lambda: all(dimmed == (series != "1") for series, dimmed in dim()))
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    shortly(browser, lambda: not any(dimmed for _, dimmed in dim()))


def test_it_prints_on_paper_without_its_controls(browser, full_page):
    show(browser, full_page, scheme="dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not browser.find_element("tag name", "nav").is_displayed()
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.execute_script("return getComputedStyle(document.querySelector('.card .text')).maxHeight") == "none"
    charts = look(browser, "chartText")
    assert charts["cut"] == [] and set(charts["drawings"]) == {1}
    assert len(browser.execute_cdp_cmd("Page.printToPDF", {})["data"]) > 10_000


EVIL = [
    "<script>window.pwned = 1</script>",
    '"><img src="http://example.invalid/x" onerror="window.pwned = 2">',
    "</style><script>window.pwned = 3</script>",
    "</script></svg></title><script>window.pwned = 4</script>",
    "{{ 7 * 7 }}{% for x in y %}{# #}${window.pwned = 5}",
    "javascript:window.pwned=6' onmouseover='window.pwned=7",
    "\u202eevil\u2066\u200b",
    "<!-- --><![CDATA[ ]]>&lt;b&gt;&#60;",
    "$\\frac{1}{2}$ \\href{javascript:alert(1)}{x}",
]


@pytest.mark.parametrize("without", [(), tuple(TOKEN_COLUMNS)], ids=["tokens", "texts"])
def test_hostile_content_is_shown_as_text_and_does_nothing(browser, write, tiny_tokenizer, tmp_path, without):
    rng = np.random.default_rng(0)
    rows = scored_rows(tiny_tokenizer, len(EVIL), tuple(EVIL))
    huge = "w" * 1_000_000
    for i, row in enumerate(rows):
        text = huge if i == 0 else f"{EVIL[i % len(EVIL)]} {' '.join(EVIL)}"
        row |= {"problem_id": EVIL[i // len(EVIL)], "completion": text, "prompt": text, STUDENT: EVIL[1]}
        row |= {"<b>right</b>": row.pop("correct"), EVIL[1]: row.pop("teacher")}
        row |= token_columns(tiny_tokenizer, text, rng) | {STUDENT: EVIL[1]}
    rows[1] |= {"problem_id": huge}
    rows[2] |= {ERROR: EVIL[0]}
    named = {"teacher_column": EVIL[1], "correctness_column": "<b>right</b>", "rows": [0, 2, 5]}
    source = f"{tmp_path}/{EVIL[0][:20]}"
    page = write(rows, "<img src=x onerror=alert(1)>.html", without, source=source, **named)
    assert page.report.num_bytes < 5_000_000
    for width in (1400, 390):
        show(browser, page, width)
        assert browser.execute_script("return window.pwned") is None
        kinds = ["script", "style", "img", "iframe", "[onclick], [onerror], [onmouseover]"]
        counts = "return arguments[0].map((kind) => document.querySelectorAll(kind).length)"
        assert browser.execute_script(counts, kinds) == [1, 1, 0, 0, 0]
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        text = browser.execute_script("return document.body.textContent")
        assert all(evil[:20] in text for evil in EVIL[:6])
        assert "{{ 7 * 7 }}" in text and "\\u202eevil" in text and "\u202e" not in text
        for controls, number in (("#teachers thead button, .legend button", 8), (".tokens i", 3)):
            for control in browser.find_elements("css selector", controls)[:number]:
                browser.execute_script("arguments[0].click()", control)
        assert browser.execute_script("return window.pwned") is None
        assert troubles(browser) == []
