"""The documentation's site in a real browser, as a web server gives it: search, languages, light and dark."""

import functools
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

PALETTE = "form[data-md-component=palette] label:not([hidden])"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def served(site):
    """The site's address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def page(browser):
    with browser.new_context(color_scheme="light", viewport={"width": 1280, "height": 900}) as context:
        yield context.new_page()


@pytest.mark.parametrize("width", [390, 1200])
def test_no_page_is_wider_than_its_window(page, served, width):
    page.set_viewport_size({"width": width, "height": 900})
    for home in ("index.html", "ja/index.html", "settings.html"):
        page.goto(f"{served}/{home}")
        assert page.evaluate("document.documentElement.scrollWidth") == width, home


@pytest.mark.parametrize(
    ("home", "word", "wanted"),
    [
        ("index.html", "heartbeat", "board.html#what-happens"),
        ("ja/index.html", "生存信号", "ja/board.html#処理の流れ"),
        ("ja/index.html", "サンプラー", "ja/tutorial.html#4-エミュレーションで確かめる"),
        ("zh/index.html", "采样器", "zh/tutorial.html#4-查看仿真结果"),
        ("zh/index.html", "心跳", "zh/board.html#过程"),
    ],
)
def test_a_word_is_found_in_its_language(served, page, home, word, wanted):
    page.goto(f"{served}/{home}?q={word}")
    page.wait_for_selector(".md-search-result__item", state="attached")

    found = page.eval_on_selector_all(".md-search-result__link", "links => links.map(link => decodeURI(link.href))")
    assert f"{served}/{wanted}" in [link.replace(f"?h={word}", "") for link in found]


def test_the_languages_lead_to_the_same_page(served, page):
    page.goto(f"{served}/tutorial.html")
    for lang in ("ja", "zh"):
        page.hover(".md-select button")
        page.click(f".md-select__link[hreflang={lang}]")
        page.wait_for_url(f"{served}/{lang}/tutorial.html")
        assert page.get_attribute("html", "lang") == lang


def test_light_and_dark_can_be_chosen_and_stay_on_the_next_page(served, page):
    page.goto(f"{served}/index.html")
    assert page.get_attribute("body", "data-md-color-scheme") == "default"  # as the system
    for _ in range(2):  # light, then dark
        page.click(PALETTE)
    assert page.get_attribute("body", "data-md-color-scheme") == "slate"

    page.goto(f"{served}/ja/board.html")
    assert page.get_attribute("body", "data-md-color-scheme") == "slate"
