"""The page of the server in Chromium, as a person uses it."""

from __future__ import annotations

import os
import re
import shutil

import pytest
from serve.client import serving

from mindspore_palm import Sampling

pytestmark = pytest.mark.browser
SCREENSHOTS = "MINDSPORE_PALM_SCREENSHOTS"  # a folder that gets pictures of the page
ENDLESS = 100_000


@pytest.fixture(scope="module")
def server(model_folder):
    with serving(model_folder, "--max-tokens", str(ENDLESS)) as running:
        yield running


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, server):
    """The page at 1,200 pixels; it may log no error, and ask for nothing elsewhere."""
    context = chromium.new_context(viewport={"width": 1200, "height": 800})
    opened, complaints, asked = context.new_page(), [], []
    opened.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.complaints = complaints
    opened.goto(f"http://127.0.0.1:{server.port}/")
    yield opened
    assert all(url.startswith((f"http://127.0.0.1:{server.port}/", "data:")) for url in asked)
    context.close()
    assert complaints == []


def picture(page, name):
    if folder := os.environ.get(SCREENSHOTS):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def fill(page, prompt, temperature="0", length="40"):
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_label("Temperature").fill(temperature)
    page.get_by_label("Length in tokens").fill(length)


def test_a_prompt_is_continued(page, generator):
    (expected,) = generator(["import os1"], Sampling(max_tokens=40))
    assert page.title() == "small" and page.get_by_role("heading", name="small").is_visible()
    fill(page, "import os1")
    page.get_by_role("button", name="Continue").click()
    page.get_by_text(re.compile(r"^40 tokens in .* s; the length was reached\.$")).wait_for()
    assert page.get_by_role("region", name="Text").text_content() == "import os1" + expected.text
    assert page.get_by_role("button", name="Continue").is_enabled()
    assert page.get_by_role("button", name="Stop").is_disabled()


@pytest.mark.parametrize("by_key", [False, True])
def test_the_text_streams_and_stop_frees_its_place(page, server, by_key):
    fill(page, "import os1", length=str(ENDLESS))
    from playwright.sync_api import expect

    if by_key:
        page.get_by_label("Prompt").press("Control+Enter")
    else:
        page.get_by_role("button", name="Continue").click()
    expect(page.locator("#new")).to_have_text(re.compile(".{20}", re.DOTALL), timeout=20_000)
    server.wait_for(running=1)
    assert page.get_by_role("button", name="Continue").is_disabled()
    page.keyboard.press("Escape") if by_key else page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    server.wait_for(running=0, waiting=0)
    assert len(page.locator("#new").text_content()) > 20  # what has come stays


def test_an_error_is_shown_in_words(page):
    page.get_by_role("button", name="Continue").click()
    page.get_by_text("Write the beginning of a text first.").wait_for()
    fill(page, "x1" * 400)
    page.get_by_role("button", name="Continue").click()
    page.get_by_text(re.compile("^Error: the prompt has .* shorten it to at most 159$")).wait_for()
    assert page.locator("#status").get_attribute("role") == "status"
    assert len(page.complaints) == 1 and "400 (Bad Request)" in page.complaints.pop()  # Chromium logs every 400


def test_what_is_generated_is_text_and_never_markup(page):
    fill(page, "<img src=x onerror=alert(1)><b>", length="3")
    page.get_by_role("button", name="Continue").click()
    page.get_by_text(re.compile(r"^\d tokens? in ")).wait_for()
    assert page.locator("#text img, #text b").count() == 0
    assert "<img src=x onerror=alert(1)>" in page.locator("#text").text_content()


def test_a_keyboard_reaches_everything_in_order(page):
    page.get_by_label("Prompt").focus()
    order = []
    for _ in range(4):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id"))
    assert order == ["temperature", "length", "go", "text"]  # Stop is disabled


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1200])
def test_it_fits_narrow_windows_and_has_contrast(page, width, scheme):
    """Nothing is cut off, and text has the contrast of WCAG 2.2 AA: 4.5 to 1."""
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    fill(page, "import os1\nimport " + "averylongname" * 9, length="60")
    page.get_by_role("button", name="Continue").click()
    page.get_by_text(re.compile(r"^\d+ tokens? in ")).wait_for()
    picture(page, f"page-{scheme}-{width}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    low = page.evaluate(CONTRAST)
    assert low == []


CONTRAST = """() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => numbers(color).slice(0, 3).map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const back = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const color = getComputedStyle(one).backgroundColor;
      if ((numbers(color)[3] ?? 1) > 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const low = [];
  for (const element of document.querySelectorAll("h1, h2, p, label, textarea, input, button:enabled, kbd, span")) {
    const [a, b] = [light(getComputedStyle(element).color), light(back(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.push(`${element.tagName} ${element.id} ${ratio.toFixed(2)}`);
  }
  return low;
}"""
