"""The rendered site in a real browser: mathematics, console, requests, accessibility, phones, keyboard, what moves."""

import functools
import http.server
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import warnings
import zipfile
from types import SimpleNamespace
from urllib.parse import urldefrag

from gluon_kl import JSDivLoss, KLDivLoss, ReverseKLDivLoss

import matplotlib.image
import mxnet as mx
import numpy as np
import pytest
from gallery import TUTORIALS
from rendered import pages

import tasks

pytestmark = [pytest.mark.site, pytest.mark.browser]
PRELOADED = ("sklearn.datasets", "sklearn.model_selection", "gymnasium")  # for the notebooks

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
# Nothing but the loopback address can be reached, not even by the browser's own services.
FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
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
def address(site):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


# The theme's scripts wait 300 ms to see whether a window is being resized.
IMPATIENT = "const later = window.setTimeout; window.setTimeout = (run, ms, ...rest) => later(run, ms / 10, ...rest)"


def open_page(browser, theme, size, console, requests, **options):
    """A new tab, with a profile of its own, that writes down what it logs and what it asks for."""
    page = browser.new_context(color_scheme=theme, viewport=size, **options).new_page()
    page.add_init_script(IMPATIENT)
    page.set_default_timeout(120000)  # milliseconds: a machine may be busy
    page.on("console", lambda message: console.append(f"{message.text} {message.location['url']}")
            if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: console.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.on("requestfailed", lambda request: console.append(f"failed: {request.url}"))
    return page


# Every page is seen in each of these, without being loaded again.
VARIANTS = [("light", DESKTOP), ("dark", DESKTOP), ("light", PHONE)]
LOOK = """() => ({
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
    broken: [...document.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src),
})"""
# A theme changes colours alone, and a phone shows the same ones.
AXE = [{"rules": {"color-contrast": {"enabled": False}}}, {"runOnly": ["color-contrast"]}, {}]
QUICK = {"resultTypes": ["violations"]}  # to list what passes takes as long again
# Of code, one token of a kind: all look alike, and thousands take axe minutes.
FEWER_TOKENS = """() => {
    const seen = new Set()
    for (const token of document.querySelectorAll('.highlight pre span')) {
        const block = token.closest('.highlight').parentElement
        const kind = [block.className, token.parentElement.tagName, token.className].join(' ')
        if (seen.has(kind) && !token.closest('a')) token.replaceWith(...token.childNodes)
        seen.add(kind)
    }
}"""


def show(page, theme, size):
    """Show a page that is open in another theme or width, and wait until it is painted."""
    page.emulate_media(color_scheme=theme, reduced_motion="reduce")
    page.set_viewport_size(size)
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    if size is not DESKTOP:
        page.wait_for_timeout(50)  # the theme makes what scrolls by now focusable, 30 ms after it is told


@pytest.fixture(scope="module")
def visits(browser, site, address):
    """Open every page, look at it in both themes and on a phone, and keep what the tests ask about.

    Of the pages of source code, which are all alike, axe reads the first.
    """
    from axe_playwright_python.sync_playwright import Axe

    axe, kept, console, requests = Axe(), [], [], []
    page = open_page(browser, *VARIANTS[0], console, requests)
    for name in pages(site):
        console.clear(), requests.clear()
        page.goto(address + name, wait_until="load")
        page.evaluate("() => window.MathJax ? MathJax.startup.promise : null")
        page.evaluate("() => document.querySelectorAll('details.fold').forEach(fold => fold.open = true)")
        here = []
        for theme, size in VARIANTS:
            show(page, theme, size)
            here.append(SimpleNamespace(
                where=f"{name}, {theme}, {size['width']} px", name=name, asked_theme=theme, size=size, violations=[],
                **page.evaluate(LOOK)))
        for visit in here:
            visit.console, visit.requests = list(console), list(requests)
        page.evaluate(FEWER_TOKENS)
        # Last, for it fetches style sheets itself; and from the phone back to the first, which the next page begins in.
        alike = name.startswith("_modules") and any(visit.name.startswith("_modules") for visit in kept)
        for visit, rules in zip(here[::-1], AXE) if not alike else ():
            if visit is not here[-1]:
                show(page, visit.asked_theme, visit.size)
            visit.violations = axe.run(page, options={**QUICK, **rules}).response["violations"]
        if alike:
            show(page, *VARIANTS[0])
        kept += here
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


def test_links_and_anchors_are_alive(visits, site, address):
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


@pytest.mark.parametrize("words", ["nan", "negative", "one_hot", "wrong scale", "slow"])
def test_search_finds_troubleshooting(browser, address, words):
    page = open_page(browser, "light", DESKTOP, [], [])
    page.goto(f"{address}search.html?q={words.replace(' ', '+')}")
    page.wait_for_selector("#search-results li a")
    page.wait_for_function("!document.querySelector('#search-results .search-summary').textContent.includes('...')")
    found = page.eval_on_selector_all("#search-results li > a", "links => links.map(link => link.href)")
    page.context.close()
    assert any("/troubleshooting.html" in link for link in found[:5]), found


# Two distributions to move

SLIDERS = {"gallery/kl_divergence.html": ("kl",), "gallery/which_divergence.html": ("reverse_kl", "js")}
LOSSES = {"kl": KLDivLoss, "reverse_kl": ReverseKLDivLoss, "js": JSDivLoss}
START = {"gallery/kl_divergence.html": [[.3, .4, .1, .2], [.2, .5, .2, .1]],
         "gallery/which_divergence.html": [[.45, .05, .05, .45], [.1, .4, .4, .1]]}


@pytest.fixture(scope="module", params=SLIDERS)
def opened_sliders(request, browser, address):
    """A page with sliders, opened on a phone with a touch screen."""
    page = open_page(browser, "light", PHONE, [], [], has_touch=True)
    page.goto(address + request.param)
    page.wait_for_selector(".sliders-tool")
    yield page, request.param
    page.context.close()


@pytest.fixture
def sliders(opened_sliders):
    """Where they start, and nothing is chosen."""
    opened_sliders[0].locator("[data-do=reset]").click()
    opened_sliders[0].evaluate("() => { document.activeElement.blur(); scrollTo(0, 0) }")
    return opened_sliders


def number(text):
    """Read a number as the page writes it."""
    return float(text.replace("\u2212", "-").replace("∞", "inf"))


def shown(page):
    """All numbers of the sliders' box: results by name, terms by name, and the shares, two rows."""
    return page.evaluate("""() => ({
        results: Object.fromEntries([...document.querySelectorAll('[data-result]')].map(
            cell => [cell.dataset.result, cell.textContent])),
        terms: [...document.querySelectorAll('.sliders-lane')].map(
            lane => [lane.dataset.term, lane.nextElementSibling.textContent]),
        shares: [0, 1].map(side => [...document.querySelectorAll(`input[data-side="${side}"]`)].map(
            input => input.parentElement.nextElementSibling.textContent)),
    })""")


def agrees(page, name, shares):
    """Check every number on the page against the package, for the shares that should be there."""
    now = shown(page)
    label, pred = np.array(shares)
    for row, written in zip((label, pred), now["shares"]):
        for value, text in zip(row, written):
            assert text == "<0.01" if 0 < value < 0.005 else number(text) == pytest.approx(value, abs=0.00501)
    arrays = mx.nd.array(pred[None], dtype="float64").log(), mx.nd.array(label[None], dtype="float64")
    for divergence, loss in LOSSES.items():
        value = loss(reduction="sum")(*arrays).asscalar()
        assert number(now["results"][divergence]) == pytest.approx(value, abs=5.01e-5), divergence
    forward, words = KLDivLoss(reduction="sum")(*arrays).asscalar(), page.locator(".sliders-words").text_content()
    if np.isinf(forward):
        assert words.endswith("the divergence is infinite.")
    else:  # the geometric mean of pred / label under label
        assert float(re.search(r"gives ([\d.]+) times", words).group(1)) == pytest.approx(np.exp(-forward), abs=0.00501)
    mean = KLDivLoss(reduction="mean")(*arrays).asscalar()
    assert number(now["results"]["mean"]) == pytest.approx(mean, abs=5.01e-5)
    for divergence in SLIDERS[name]:
        terms = LOSSES[divergence](reduction="none")(*arrays).asnumpy()[0]
        written = [number(text) for term, text in now["terms"] if term == divergence]
        np.testing.assert_allclose(written, terms, rtol=0, atol=5.01e-5, err_msg=divergence)


def moved(shares, side, place, value):
    """Move one share; the others of its side keep their proportions."""
    shares = np.array(shares, dtype=float)
    rest = np.delete(shares[side], place)
    shares[side] = np.insert((1 - value) * (rest / rest.sum() if rest.sum() else np.full(len(rest), 1 / len(rest))),
                             place, value)
    return shares


def slider(page, side, place):
    return page.locator(f'input[data-side="{side}"]').nth(place)


def test_sliders_by_keyboard(sliders):
    page, name = sliders
    shares = START[name]
    agrees(page, name, shares)
    tab_to(page, '.sliders input[data-side="0"]', most=200)
    for _ in range(7):
        page.keyboard.press("ArrowRight")
    agrees(page, name, moved(shares, 0, 0, shares[0][0] + 0.07))
    slider(page, 1, 3).focus()
    page.keyboard.press("End")
    agrees(page, name, moved(moved(shares, 0, 0, shares[0][0] + 0.07), 1, 3, 1))
    page.keyboard.press("ArrowLeft")  # the others are what they were before, in proportion
    agrees(page, name, moved(moved(shares, 0, 0, shares[0][0] + 0.07), 1, 3, 0.99))
    assert slider(page, 1, 3).get_attribute("aria-valuetext") == "0.99"
    assert len(set(page.eval_on_selector_all(".sliders input", "all => all.map(one => one.ariaLabel)"))) == 8


def test_a_pred_of_0_is_infinitely_wrong(sliders):
    page, name = sliders
    slider(page, 1, 3).focus()
    page.keyboard.press("Home")
    shares = moved(START[name], 1, 3, 0)
    agrees(page, name, shares)
    results = shown(page)["results"]
    assert results["kl"] == results["mean"] == "∞"
    assert number(results["js"]) < np.log(2)
    tab_to(page, "[data-do=swap]")
    page.keyboard.press("Enter")
    agrees(page, name, shares[::-1])
    assert shown(page)["results"]["reverse_kl"] == "∞"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    agrees(page, name, START[name])


def test_disjoint_distributions_are_log_2_apart(sliders):
    page, name = sliders
    for side, place in ((0, 0), (1, 3)):
        slider(page, side, place).focus()
        page.keyboard.press("End")
    agrees(page, name, [[1, 0, 0, 0], [0, 0, 0, 1]])
    assert shown(page)["results"] == {"kl": "∞", "reverse_kl": "∞", "js": "0.6931", "mean": "∞"}
    slider(page, 0, 1).focus()
    page.keyboard.press("ArrowRight")
    agrees(page, name, [[0.99, 0.01, 0, 0], [0, 0, 0, 1]])
    page.keyboard.press("Home")
    slider(page, 0, 0).focus()
    page.keyboard.press("Home")  # nothing is left to keep its proportions: the rest is shared out evenly
    agrees(page, name, [[0, 1 / 3, 1 / 3, 1 / 3], [0, 0, 0, 1]])


def test_sliders_by_touch(sliders):
    page, name = sliders
    bar = slider(page, 0, 1)
    bar.scroll_into_view_if_needed()
    box = bar.bounding_box()
    assert box["height"] >= 24 and box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
    thumb = 20  # the track ends half a thumb before the slider does
    page.touchscreen.tap(box["x"] + thumb / 2 + 0.75 * (box["width"] - thumb), box["y"] + box["height"] / 2)
    share = float(bar.input_value())
    assert share == pytest.approx(0.75, abs=0.03)
    agrees(page, name, moved(START[name], 0, 1, share))


def test_bars_show_the_shares(sliders):
    """Each as long as its share of the track, and the results in sight while the last slider moves."""
    page, name = sliders
    page.evaluate("document.querySelector('.sliders-buttons').scrollIntoView({block: 'end', behavior: 'instant'})")
    lengths = page.eval_on_selector_all(".sliders-bar", """bars => bars.map(
        bar => bar.firstElementChild.getBoundingClientRect().width / bar.getBoundingClientRect().width)""")
    np.testing.assert_allclose(lengths, np.transpose(START[name]).ravel(), atol=0.01)
    box, header = (page.locator(part).bounding_box() for part in (".sliders-results", ".bd-header"))
    assert header["y"] + header["height"] <= box["y"] + 1 < slider(page, 1, 3).bounding_box()["y"]


@pytest.mark.parametrize("name", SLIDERS)
@pytest.mark.parametrize("scripts", [True, False])
def test_a_figure_stands_where_scripts_are_off(browser, address, name, scripts):
    page = open_page(browser, "light", DESKTOP, [], [], java_script_enabled=scripts)
    page.goto(address + name)
    assert page.locator(".sliders-tool").is_visible() == scripts
    assert page.locator(".sliders img").first.is_visible() == (not scripts)
    page.context.close()


# What folds away


def test_folds_open_by_keyboard_and_on_paper(browser, address):
    page = open_page(browser, "light", DESKTOP, [], [])
    page.goto(address + "gallery/kl_divergence.html")
    folds = page.locator("details.fold")
    inside = [fold.locator("p").first for fold in folds.all()]
    assert len(inside) == 6
    assert not any(paragraph.is_visible() for paragraph in inside)
    for paragraph in inside:
        tab_to(page, "details.fold > summary", most=200)
        page.keyboard.press("Enter")
        assert paragraph.is_visible()
        page.keyboard.press("Enter")
        assert not paragraph.is_visible()
    page.emulate_media(media="print")
    assert all(paragraph.is_visible() and paragraph.bounding_box()["height"] > 10 for paragraph in inside)
    page.context.close()


# Downloads

# Runs a notebook as Jupyter would: cell by cell in one namespace without __file__, under arguments of Jupyter's own.
# The site has just run the same cells in full: here what is trained is trained briefly.
JUPYTER = """
import argparse, json, os, sys, types
import matplotlib
matplotlib.use("Agg")
brief = {"--seeds": 2, "--steps": 20, "--epochs": 3, "--updates": 3, "--turns": 1, "--categories": 2000}
add = argparse.ArgumentParser.add_argument
argparse.ArgumentParser.add_argument = lambda parser, name, *rest, **options: add(
    parser, name, *rest, **({**options, "default": brief[name]} if name in brief else options))
path = os.path.abspath(FILE)
os.chdir(os.path.dirname(path))
sys.argv = ["ipykernel_launcher.py", "-f", "kernel.json"]
sys.path.insert(0, os.path.dirname(path))
sys.modules["__main__"] = main = types.ModuleType("__main__")
for cell in json.load(open(path, encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), "<cell>", "exec"), main.__dict__)
"""


@pytest.fixture(scope="module", params=TUTORIALS)
def download(request, browser, address, tmp_path_factory):
    """The folder that a reader has after following the link at the end of a tutorial."""
    folder = tmp_path_factory.mktemp("download")
    page = open_page(browser, "light", DESKTOP, [], [], accept_downloads=True, java_script_enabled=False)
    page.goto(f"{address}gallery/{request.param}.html")
    links = page.locator(".sphx-glr-download a").all()
    assert len(links) == 1, "neither script nor notebook runs without the rest"
    with page.expect_download() as arriving:
        links[0].click()
    arriving.value.save_as(folder / "archive.zip")
    page.context.close()
    with zipfile.ZipFile(folder / "archive.zip") as archive:
        archive.extractall(folder)
    return folder / request.param


def run_download(folder, *command):
    """Run something in a download, away from the checkout; return what it printed."""
    environment = dict(os.environ, PYTHONPATH=str(tasks.ROOT))
    done = subprocess.run([sys.executable, *command], cwd=str(folder), env=environment, timeout=600,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_download_is_whole(download):
    imported = ["plots.py", "matplotlibrc"] + ["launch.py"] * (download.name == "distributed_training")
    assert {file.name for file in download.iterdir()} == {f"{download.name}.py", f"{download.name}.ipynb", *imported}
    for name in (f"{download.name}.py", *imported):
        assert (download / name).read_bytes() == (tasks.ROOT / "tutorials" / name).read_bytes()
    cells = json.loads((download / f"{download.name}.ipynb").read_text("utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert not [line for line in text.split("\n") if line.startswith(".. ") or ":class:`" in line or "]_" in line]


def test_a_downloaded_script_runs(download):
    """One in full, and one that says what it takes: the notebooks run the same code."""
    arguments = {"kl_divergence": [], "distributed_training": ["--help"]}.get(download.name)
    if arguments is not None:
        assert run_download(download, f"{download.name}.py", *arguments)


def test_a_downloaded_notebook_runs(download, in_child):
    """From its first cell to its last, its figures beside it."""
    assert in_child(f"FILE = {str(download / (download.name + '.ipynb'))!r}\n{JUPYTER}")
    assert list(download.glob("*.png"))


def test_figures_belong_to_a_dark_page(browser, address):
    """The corner of a figure is the page's own colour, and what is written on it is light."""
    page = open_page(browser, "dark", DESKTOP, [], [])
    page.goto(address + "gallery/knowledge_distillation.html")
    image = page.locator("article img.sphx-glr-single-img").first
    image.scroll_into_view_if_needed()
    seen = matplotlib.image.imread(io.BytesIO(image.screenshot()), format="png")[..., :3]
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.context.close()
    expected = np.array([int(part) for part in background.strip("rgb()").split(",")[:3]])
    np.testing.assert_allclose(seen[2, 2] * 255, expected, atol=2)
    assert np.median(seen) < 0.15 < 0.85 < seen.max()
