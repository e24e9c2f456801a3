"""The page in a browser: it plays, wipes, zooms and says what it has to say, without an error or a request."""

import shutil

import pytest

from flowreg_gpu.report.page import write_page
from tests.report.test_page import made_up

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, tmp_path):
    """The page, and whatever it complained about or asked the network for."""
    write_page(tmp_path / "page.html", made_up((40, 64, 96, 2), played=8))
    page, complaints = browser.new_page(viewport={"width": 1100, "height": 800}), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
    page.goto((tmp_path / "page.html").as_uri())
    yield page
    assert complaints == []
    page.close()


def test_the_verdict_can_be_read(opened):
    text = opened.inner_text("#verdict")
    for part in ("better", "A reason.", "An advice.", "something was odd"):
        assert part.lower() in text.lower()


def test_the_slider_wipes(opened):
    before, pictures = opened.locator("#image-before"), []
    for share in (0, 50, 100):
        opened.locator("#slider").fill(str(share))
        assert f"{100 - share}%" in before.evaluate("image => image.style.clipPath") or share == 100
        pictures.append(opened.locator("#wipe").screenshot())
    assert len(set(pictures)) == 3


def test_views_and_channels(opened):
    shown = {opened.get_attribute("#image-before", "src")}
    opened.click("[data-view=maximum]")
    shown.add(opened.get_attribute("#image-before", "src"))
    opened.click("[data-view=difference]")
    shown.add(opened.get_attribute("#image-before", "src"))
    assert opened.locator("#difference-text").is_visible()
    opened.click("[data-view=mean]")
    assert opened.locator("#difference-text").is_hidden()
    opened.select_option("#channel", "1")
    shown.add(opened.get_attribute("#image-before", "src"))
    assert len(shown) == 4


def test_frames_are_played(opened):
    numbers = opened.evaluate("report.strip.numbers")
    assert opened.inner_text("#shown") == f"frame {numbers[0]}"
    first = opened.locator("#play-after").screenshot()
    opened.click("#forward")
    assert opened.inner_text("#shown") == f"frame {numbers[1]}"
    assert opened.locator("#play-after").screenshot() != first
    opened.click("#back")
    opened.click("#back")
    assert opened.inner_text("#shown") == f"frame {numbers[-1]}"
    opened.click("#play")
    opened.wait_for_function(f"element('shown').textContent !== 'frame {numbers[-1]}'")
    assert opened.inner_text("#play") == "pause"
    opened.click("#play")
    assert opened.get_attribute("#play", "aria-pressed") == "false"


def test_a_click_on_a_time_shows_that_frame(opened):
    numbers = opened.evaluate("report.strip.numbers")
    drawing = opened.locator("#traces svg")
    drawing.scroll_into_view_if_needed()
    area, trace = drawing.bounding_box(), opened.evaluate("report.trace")
    shown = []
    for index in (len(numbers) - 1, 3):
        share = (numbers[index] + 0.5) / trace["frames"]
        share = trace["left"] + share * (trace["right"] - trace["left"])
        drawing.click(position={"x": share * area["width"], "y": area["height"] / 2})
        assert opened.inner_text("#near-number") == f"frame {numbers[index]}"
        shown.append(opened.locator("#near-after").screenshot())
        drawing.scroll_into_view_if_needed()
    assert shown[0] != shown[1]


def test_zoom_and_back(opened):
    drawing = opened.locator("#traces svg")
    whole = drawing.get_attribute("viewBox")
    drawing.hover()
    opened.mouse.wheel(0, -300)
    opened.wait_for_function(f"document.querySelector('#traces svg').getAttribute('viewBox') !== '{whole}'")
    drawing.dblclick()
    numbers = [float(number) for number in drawing.get_attribute("viewBox").split()]
    assert numbers == pytest.approx([float(number) for number in whole.split()])


def test_blinking(opened):
    opened.click("#blink")
    opened.wait_for_function("document.getElementById('image-before').style.clipPath.includes('100%')")
    opened.wait_for_function("!document.getElementById('image-before').style.clipPath.includes('100%')")
    opened.click("#blink")
    assert opened.get_attribute("#blink", "aria-pressed") == "false"
