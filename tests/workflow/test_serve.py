"""The page of a bundle's server in a real browser: it draws, shows the preview, is interrupted, and goes on after a reload."""

import re

import numpy as np
import pytest

from tests.unit.test_serve import (
    HEIGHT,
    TOKEN,
    WIDTH,
    bundle,  # noqa: F401
    serving,
    tiny,  # noqa: F401
)
from tests.workflow.test_pages import CONTRAST, PHONE, WIDE, background

WAIT = 30_000  # ms


@pytest.fixture(scope="module")
def served(tiny):  # noqa: F811
    with serving([tiny]) as served:
        yield served


@pytest.fixture
def show(browser):
    """A function that opens the page of a server; every complaint of the browser fails the test at its end."""
    complaints, contexts = [], []

    def opened(served, *, ignoring="", **how):
        context = browser.new_context(**{"viewport": WIDE, **how})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.text != ignoring else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if is_foreign(request.url, served) else None)
        page.goto(served.url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def is_foreign(url, served):
    return not url.startswith((f"{served.url}/", f"blob:{served.url}/", "data:"))


def told(page, text):
    page.locator("#told", has_text=re.compile(text)).wait_for(timeout=WAIT)


def drawn(page, **values):
    """Fill in the form and draw, to the end."""
    for name, value in values.items():
        page.fill(f"#{name}", value)
    page.click("#draw")
    told(page, "Done")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, WIDE], ids=["phone", "desktop"])
def test_the_page_draws_on_every_screen(served, show, size, scheme):
    page = show(served, viewport=size, color_scheme=scheme)
    page.locator("#model option").first.wait_for(state="attached")

    drawn(page, prompt="a red cat", seed="7")

    assert page.locator("#shown").evaluate("one => [one.naturalWidth, one.naturalHeight]") == [WIDTH, HEIGHT]
    assert page.locator("#parameters").inner_text().startswith("a red cat\nNegative prompt: blurry\nSteps: 3")
    assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
    assert (sum(background(page)) > 3 * 200) == (scheme == "light")
    assert page.locator("#ribbon").inner_text().startswith("EMULATED")
    assert page.locator(".card .emulated").inner_text() == "EMULATED"
    assert page.evaluate(CONTRAST) >= 4.5


def test_a_drawing_goes_on_after_a_reload_and_can_be_interrupted(served, show):
    page = show(served)
    page.locator("#model option").first.wait_for(state="attached")
    page.fill("#count", "2")
    with served.held():
        page.click("#draw")
        told(page, "Drawing: picture 1 of 2, step 0 of 3")
        page.reload()
        told(page, "Drawing: picture 1 of 2, step 0 of 3")
        assert page.locator("#bar").is_visible() and page.locator("#draw").is_disabled()
        (job,) = served.engine.drawing()
        job.preview = served.engine.cards[0].loaded["tiny"].preview.png(np.zeros((1, 6, 6, 4), np.float32))
        page.locator("#shown.preview").wait_for(timeout=WAIT)
    told(page, "Done")
    assert page.locator(".card").count() == 2
    with served.held():
        page.click("#draw")
        told(page, "Drawing")
        page.click("#stop")
        served.go_on()
        told(page, "Interrupted")
    page.locator(".card button.open").last.click()
    assert page.locator("#count").input_value() == "1" and page.locator("#seed").input_value().isdecimal()

    return np.zeros((1, 6, 6, 4), np.float32)


def test_a_mask_is_painted_over_a_picture_of_the_history(served, show):
    page = show(served)
    page.locator("#model option").first.wait_for(state="attached")
    drawn(page, seed="7")
    before = page.locator("#parameters").inner_text()
    page.get_by_text("Draw over", exact=True).first.click()
    box = page.locator("#mask").bounding_box()
    page.fill("#brush", "100")
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 4, steps=3)
    page.mouse.up()

    page.fill("#strength", "1")
    with page.expect_request("**/api/draw") as asked:
        drawn(page, seed="8")

    order = asked.value.post_data_json
    assert order["mask"].startswith("data:image/png;base64,") and order["strength"] == 1
    assert "Denoising strength: 1" in page.locator("#parameters").inner_text() != before
    page.click("#clear")
    with page.expect_request("**/api/draw") as asked:
        drawn(page, seed="9")
    assert "mask" not in asked.value.post_data_json and "image" in asked.value.post_data_json
    assert page.locator(".card").count() == 3


def test_what_the_server_refuses_is_shown(served, show):
    page = show(served, ignoring="Failed to load resource: the server responded with a status of 400 (Bad Request)")
    page.locator("#model option").first.wait_for(state="attached")
    page.evaluate("document.getElementById('seed').value = '9'.repeat(30)")

    page.click("#draw")

    page.locator("#problem", has_text="seed: '999").wait_for(timeout=WAIT)
    assert page.locator("#draw").is_enabled()


def test_a_token_is_asked_for_once(tiny, show):  # noqa: F811
    with serving([tiny], token=TOKEN) as served:
        page = show(
            served, ignoring="Failed to load resource: the server responded with a status of 401 (Unauthorized)"
        )
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        page.locator("#model option").first.wait_for(state="attached", timeout=WAIT)
        drawn(page, seed="7")
        page.reload()
        page.locator("#model option").first.wait_for(state="attached", timeout=WAIT)
        assert page.locator(".card").count() == 1 and not page.locator("#login").is_visible()
