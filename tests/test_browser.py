"""The rendered site in a real browser: mathematics, console, requests, accessibility, phones, keyboard."""

import functools
import http.server
import os
import shutil
import threading
import warnings
from types import SimpleNamespace
from urllib.parse import urldefrag

import pytest
from rendered import pages, site  # noqa: F401

pytestmark = [pytest.mark.site, pytest.mark.browser]

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
# Nothing but the loopback address can be reached, not even by the browser's own services.
FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="session")
def browser():
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        missing = "no Chromium on this machine: the site was NOT tried in a browser (apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(missing)
        warnings.warn(missing, stacklevel=1)
        pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    flags = FLAGS + (["--no-sandbox"] if os.geteuid() == 0 else [])
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, args=flags)
        yield running
        running.close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def address(site):  # noqa: F811
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def open_page(browser, theme, size, console, requests):
    """A new tab, with a profile of its own, that writes down what it logs and what it asks for."""
    page = browser.new_context(color_scheme=theme, viewport=size).new_page()
    page.on("console", lambda message: console.append(f"{message.text} {message.location['url']}")
            if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: console.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.on("requestfailed", lambda request: console.append(f"failed: {request.url}"))
    return page


@pytest.fixture(scope="session")
def visits(browser, site, address):  # noqa: F811
    """Open every page in both themes and on a phone, and keep what the tests ask about."""
    from axe_playwright_python.sync_playwright import Axe

    kept = []
    for theme, size in (("light", DESKTOP), ("dark", DESKTOP), ("light", PHONE)):
        console, requests = [], []
        page = open_page(browser, theme, size, console, requests)
        for name in pages(site):
            console.clear(), requests.clear()
            page.goto(address + name, wait_until="load")
            page.evaluate("() => window.MathJax ? MathJax.startup.promise : null")
            seen = page.evaluate("""() => ({
                theme: document.documentElement.dataset.theme,
                width: document.documentElement.scrollWidth,
                formulas: document.querySelectorAll('.math').length,
                typeset: document.querySelectorAll('.math > mjx-container > svg').length,
                errors: document.querySelectorAll('[data-mjx-error], mjx-merror').length,
                ids: [...document.querySelectorAll('[id]')].map(tag => tag.id),
                links: [...document.querySelectorAll('a[href]')].map(tag => tag.href),
                // What a reader would have to push sideways. Only code may be longer than a phone is wide.
                clipped: [...document.querySelectorAll(
                    'article mjx-container[display], .sphx-glr-script-out pre, dt.sig, '
                    + (innerWidth < 600 ? '.doctest pre' : 'article pre'))]
                    .filter(box => box.scrollWidth > box.clientWidth + 1).map(box => box.textContent.slice(0, 60)),
                broken: [...document.images].filter(image => image.complete && !image.naturalWidth)
                                            .map(image => image.src),
            })""")
            kept.append(SimpleNamespace(
                where=f"{name}, {theme}, {size['width']} px", name=name, asked_theme=theme, size=size,
                console=list(console), requests=list(requests), **seen))
            # Last, for it fetches style sheets itself. A phone shows the colours of the desktop: the slow rule, once.
            rules = {"rules": {"color-contrast": {"enabled": size is DESKTOP}}}
            kept[-1].violations = Axe().run(page, options=rules).response["violations"]
        page.context.close()
    return kept


def test_themes_are_shown(visits):
    assert not [visit.where for visit in visits if visit.theme != visit.asked_theme]


def test_mathematics_is_rendered(visits):
    assert any(visit.formulas for visit in visits)
    assert not [visit.where for visit in visits if visit.typeset != visit.formulas or visit.errors]


def test_console_is_silent(visits):
    assert not [(visit.where, visit.console) for visit in visits if visit.console]


def test_no_request_leaves_the_machine(visits, address):
    away = {url for visit in visits for url in visit.requests if not url.startswith((address, "data:", "blob:"))}
    assert not away


def test_images_load(visits):
    assert not [(visit.where, visit.broken) for visit in visits if visit.broken]


def test_nothing_is_wider_than_the_screen(visits):
    assert not [(visit.where, visit.width) for visit in visits if visit.width > visit.size["width"]]


def test_nothing_is_read_sideways(visits):
    """Code fits a desktop; what it prints, formulas, signatures and the examples of docstrings also a phone."""
    assert not [(visit.where, visit.clipped) for visit in visits if visit.clipped and "_modules" not in visit.name]


def test_accessibility(visits):
    found = [f"{visit.where}: {violation['id']}, {node['html'][:160]}"
             for visit in visits for violation in visit.violations for node in violation["nodes"]]
    assert not found, "\n".join(found[:20])


def test_links_and_anchors_are_alive(visits, site, address):  # noqa: F811
    anchors = {visit.name: set(visit.ids) | {""} for visit in visits}
    dead = set()
    for visit in visits:
        for link in visit.links:
            url, anchor = urldefrag(link)
            if not url.startswith(address):
                continue
            name = url[len(address):].split("?")[0]
            if not (site / name).is_file() or (name in anchors and anchor not in anchors[name]):
                dead.add(f"{visit.name}: {link}")
    assert not dead


def tab_to(page, selector, most=60):
    """Press Tab until the focus is on a visible element that matches."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("s => document.activeElement.matches(s) && document.activeElement.offsetParent !== null",
                         selector):
            return
    pytest.fail(f"{most} times Tab never reached {selector}")


def test_keyboard_reaches_search(browser, address):
    page = open_page(browser, "light", DESKTOP, [], [])
    page.goto(address + "index.html")
    tab_to(page, ".search-button__button, .search-button")
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.matches('input[type=search]')")
    page.keyboard.type("divergence")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")
    page.context.close()


def test_keyboard_reaches_the_menu(browser, address):
    page = open_page(browser, "light", PHONE, [], [])
    page.goto(address + "index.html")
    tab_to(page, "button.primary-toggle, label.primary-toggle")
    page.keyboard.press("Enter")
    page.wait_for_selector(".bd-sidebar-primary a.nav-link, #pst-primary-sidebar-modal a.nav-link")
    tab_to(page, "a[href$='contract.html']")
    page.keyboard.press("Enter")
    page.wait_for_url("**/contract.html")
    page.context.close()
