"""The page in a real browser: uploads, clicks, comparison, keyboard, small screen, dark colours.

axe checks it, the report and the page of near-duplicates against the rules of accessible pages.

The variable CHROMIUM names the browser; `launch/test.sh` installs one if there is none.
"""

import os
import pathlib
import re
import shutil

import numpy as np
import pytest
import small_run as small

from mch_jax.data import sources
from mch_jax.duplicates import page as duplicates_page
from mch_jax.duplicates.pairs import Member
from mch_jax.serving.limits import Limits
from mch_jax.serving.service import Service

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
expect.set_options(timeout=60_000)  # a busy machine may take long for its first answer

_NAMES = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in _NAMES if name and (path := shutil.which(name))), None)
SHOTS = os.environ.get("MCH_SCREENSHOTS")  # folder for screenshots, to look at

pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="no Chromium: install one, or name it in the variable CHROMIUM"
)


@pytest.fixture(scope="module")
def url(small_run):
    service = Service.open(small_run, Limits(upload_bytes=300_000))
    service.warm_up()
    with small.serving(service) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    environment = dict(os.environ)
    libraries = pathlib.Path(CHROMIUM or "").parent / "lib"
    if (libraries / "libnss3.so").exists():  # a browser with its own libraries
        environment["LD_LIBRARY_PATH"] = str(libraries)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], env=environment
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, url):
    """Opens the page; at the end, fails on script errors and on requests to other hosts."""
    pages, problems = [], []

    def open_page(path="/", **options):
        context = browser.new_context(viewport={"width": 1200, "height": 900}, **options)
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: problems.append(m.text) if "Policy" in m.text else None)
        page.on(
            "request",
            lambda r: None if r.url.startswith((url, "blob:", "data:")) else problems.append(r.url),
        )
        page.goto(url + path)
        pages.append(context)
        return page

    yield open_page
    for context in pages:
        context.close()
    assert problems == []


@pytest.fixture(scope="module")
def upload(tmp_path_factory):
    path = tmp_path_factory.mktemp("upload") / "mine & yours.jpg"
    small.photo(5, 300, 200).save(path)
    return path


def shoot(page, name):
    if SHOTS:
        page.wait_for_load_state("networkidle")
        page.screenshot(path=pathlib.Path(SHOTS) / f"{name}.png", full_page=True)


def answered(page, found=22):
    expect(page.locator("#heard")).to_contain_text(f"{found} photos found")
    expect(page.locator(".ranking.mch .hits li")).to_have_count(found)


def test_upload_shows_regions_codes_and_rows_by_distance(open_page, upload):
    page = open_page()
    page.set_input_files("#file", upload)
    answered(page)
    expect(page.locator("#whole img")).to_have_js_property("complete", True)
    assert page.locator("#whole img").evaluate("image => image.naturalWidth") == 300
    expect(page.locator("#whole .outline")).to_have_count(5)
    expect(page.locator("#regions li")).to_have_count(6)
    expect(page.locator("#about")).to_contain_text("mine & yours.jpg, 300 × 200")
    assert page.locator("#regions li").nth(4).locator(".bits b").count() == small.NUM_BITS
    first = page.locator("#regions li").first
    assert re.search(r"code [0-9a-f]{4}$", first.locator(".code .heard").inner_text())
    distances = [int(text) for text in page.locator(".ring h4").evaluate_all(
        "all => all.map(h => h.firstChild.data)")]  # fmt: skip
    assert distances == sorted(set(distances))
    expect(page.locator(".hits .photo .box")).to_have_count(22)
    assert re.search(r"22 photos; [\d,]+ buckets probed, \d+ not empty",
                     page.locator(".ranking .sum").inner_text())  # fmt: skip
    shoot(page, "upload")


def test_clicking_a_photo_searches_by_it_and_back_returns(open_page):
    page = open_page()
    expect(page.locator("#strip li")).to_have_count(14)
    page.locator("#strip button").first.click()
    answered(page)
    assert (first := page.url).partition("#item=")[2].isdigit()
    page.locator(".ring").last.locator(".shot").last.click()
    expect(page).not_to_have_url(first)
    answered(page)
    page.go_back()
    expect(page).to_have_url(first)
    name = page.locator("#strip button").first.get_attribute("aria-label")
    expect(page.locator("#about")).to_contain_text(name.split()[2].rstrip(","))


def test_compare_shows_the_base_model_too(open_page):
    page = open_page("/#item=3", color_scheme="dark")
    answered(page)
    switch = page.get_by_role("switch", name="Compare with the base model")
    expect(switch).to_have_attribute("aria-checked", "false")
    switch.click()
    expect(page.locator(".ranking")).to_have_count(2)
    left, right = (page.locator(".ranking").nth(i).bounding_box() for i in (0, 1))
    assert left["y"] == right["y"]
    assert right["x"] >= left["x"] + left["width"]
    wholes = page.locator(".ranking.base .hits .what").all_inner_texts()
    assert {text.split("\n")[0] for text in wholes} == {"whole image"}
    shoot(page, "compare-dark")
    switch.click()
    expect(page.locator(".ranking")).to_have_count(1)


def test_the_number_the_distance_and_the_label_of_answers_are_chosen(open_page):
    page = open_page("/#item=3")
    answered(page)
    expect(page.locator("#knows")).to_contain_text("red, green, blue")
    page.locator("#k").select_option("12")
    answered(page, 12)
    page.get_by_role("button", name="Show more photos").click()
    answered(page)
    expect(page.locator("#more")).to_be_hidden()
    page.get_by_label("Label").select_option("red")
    expect(page.locator("#heard")).to_contain_text("7 photos found")
    expect(page.locator(".hits .labels", has_text="red")).to_have_count(7)
    page.get_by_label("At most").select_option("0")
    expect(page.locator(".ring h4")).to_have_text(["0bits away"])
    shoot(page, "filters")


def test_a_box_drawn_on_the_query_is_a_query(open_page):
    page = open_page("/#item=3")
    answered(page)
    page.locator("#whole").scroll_into_view_if_needed()
    frame = page.locator("#whole").bounding_box()
    x, y = (frame["x"] + frame["width"] / 4, frame["y"] + frame["height"] / 4)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + frame["width"] / 2, y + frame["height"] / 2)
    page.mouse.up()
    expect(page).to_have_url(re.compile(r"#item=3&box=24,12,72,36$"))
    expect(page.locator("#about")).to_contain_text("48 × 24 of 96 × 48")
    expect(page.locator("#whole .part")).to_have_count(1)
    answered(page)
    shoot(page, "part")
    page.get_by_role("button", name="Search by the whole photo").click()
    expect(page.locator("#whole .part")).to_have_count(0)
    page.get_by_role("button", name="Search by the region top left alone").click()  # no pointer
    expect(page).to_have_url(re.compile(r"#item=3&box=0,0,48,24$"))


def test_answers_open_large(open_page):
    page = open_page("/#item=3")
    answered(page)
    page.locator(".enlarge").first.click()
    large = page.get_by_role("dialog")
    expect(large.locator("#large-about")).to_contain_text("1 of 22: 0 bits away")
    page.keyboard.press("ArrowRight")
    expect(large.locator("#large-about")).to_contain_text("2 of 22")
    expect(large.locator("img")).to_have_js_property("complete", True)
    shoot(page, "large")
    page.keyboard.press("Escape")
    expect(large).to_be_hidden()


def test_an_example_is_a_query(open_page):
    page = open_page()
    page.get_by_role("button", name="Search by the photo 00.jpg").click()
    answered(page)
    expect(page.locator("#about")).to_contain_text("00.jpg, 96 × 48")


def test_the_order_of_probing_is_shown_side_by_side(open_page):
    page = open_page("/#item=3")
    answered(page)
    orders = page.locator("#orders .order")
    expect(orders).to_have_count(2)
    left, right = (orders.nth(i).bounding_box() for i in (0, 1))
    assert left["y"] == right["y"]
    assert right["x"] >= left["x"] + left["width"]
    for order in (orders.nth(0), orders.nth(1)):
        expect(order.locator(".cells i")).to_have_count(33)
        says = order.locator(".buckets .say").all_inner_texts()
        costs = [float(re.match(r"cost ([\d.]+)", text)[1]) for text in says]
        assert costs[0] == 0
        assert costs == sorted(costs)
        photos = int(re.match(r"(\d+) photo", order.locator(".sum").inner_text())[1])
        new = [int(re.search(r"(\d+) new photo", text)[1]) for text in says]
        assert sum(new) == photos
        expect(order.locator(".found li")).to_have_count(sum(min(12, n) for n in new))
    shoot(page, "probing")
    page.get_by_label("Buckets to look at").select_option("8")
    expect(orders.first.locator(".cells i")).to_have_count(8)
    page.get_by_label("Codes of the query").select_option("all")
    expect(page.locator("#about")).to_contain_text("The search uses all six codes.")
    expect(orders.nth(1).locator(".say").first).to_contain_text("from the code of the")


def test_the_page_works_with_the_keyboard(open_page):
    page = open_page()
    expect(page.locator("#strip li")).to_have_count(14)
    focus = "(document.activeElement.id || document.activeElement.className)"
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(focus))
    assert reached == ["skip", "choose", "shot", "shot", "shuffle", "shot"]  # two examples
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    answered(page)
    assert page.evaluate(focus) == "results-title"  # a screen reader continues at the new results
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.locator(".ranking")).to_have_count(2)
    with page.expect_file_chooser() as chooser:
        page.locator("#choose").focus()
        page.keyboard.press("Enter")
    assert chooser.value is not None
    unnamed = "all => all.filter(b => !(b.ariaLabel || b.innerText).trim()).length"
    assert page.locator("button").evaluate_all(unnamed) == 0


def test_a_phone_does_not_scroll_sideways(open_page, browser):
    page = open_page("/#item=4")
    page.set_viewport_size({"width": 360, "height": 740})
    answered(page)
    page.locator("#compare").click()
    expect(page.locator(".ranking")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    upper, lower = (page.locator(".ranking").nth(i).bounding_box() for i in (0, 1))
    assert lower["y"] >= upper["y"] + upper["height"]
    shoot(page, "phone")


DROP = """([type, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], 'x.jpg', { type: 'image/jpeg' }));
  const options = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
  document.body.dispatchEvent(
    type === 'drop' ? new DragEvent(type, options) : new ClipboardEvent(type, options));
}"""


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_photos_can_be_dropped_and_pasted(open_page, upload, kind):
    page = open_page()
    page.evaluate(DROP, [kind, list(upload.read_bytes())])
    answered(page)
    expect(page.locator("#about")).to_contain_text("300 × 200")


def test_a_refused_upload_shows_the_reason(open_page, upload, tmp_path):
    page = open_page()
    for name, content, reason in (
        ("x.svg", b"<svg/>", "The upload is not a photo of a known type"),
        ("cut.jpg", upload.read_bytes()[:1500], "The photo is damaged or cut off"),
        ("big.jpg", bytes(400_000), "The upload is too large; at most 0.286102 MiB"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        page.set_input_files("#file", path)
        expect(page.get_by_role("alert")).to_contain_text(reason)
    page.set_input_files("#file", upload)
    answered(page)
    expect(page.locator("#problem")).to_be_hidden()


def violations(page):
    """Returns the rules of accessible pages that a page breaks, each with the elements.

    Dark colours are checked for their contrast alone, which is all that they change.
    """
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    page.emulate_media(color_scheme="dark")
    found += axe.run(page, options={"runOnly": ["color-contrast"]}).response["violations"]
    return {rule["id"]: [node["target"] for node in rule["nodes"]] for rule in found}


def test_the_page_is_accessible(open_page):
    page = open_page("/#item=3")
    answered(page)
    assert violations(page) == {}


@pytest.fixture(scope="module")
def duplicates(tmp_path_factory):
    """The page of two groups of near-duplicates, one photo of which is gone."""
    folder = tmp_path_factory.mktemp("duplicates")
    for number in range(4):
        small.photo(number, 300, 200).save(folder / f"{number}.jpg")
    found = [*sources.find(folder), sources.Photo("gone.jpg", str(folder))]
    groups = [[Member(0, 0), Member(1, 3), Member(4, 5)], [Member(2, 0), Member(3, 1)]]
    (folder / "out").mkdir()
    duplicates_page.write(folder / "out", groups, found, np.full((5, 2), 200), 1)
    return folder / "out"


@pytest.mark.parametrize("name", ["report", "duplicates"])
def test_the_pages_in_files_are_accessible(browser, finished, duplicates, name):
    folder = {"report": finished / "report", "duplicates": duplicates}[name]
    page = browser.new_page()
    page.goto((folder / "index.html").as_uri())
    assert violations(page) == {}
    page.close()
