"""The rendered site as files: links, images, what it would fetch, and the numbers printed on it."""

import inspect
import re
import runpy
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from bs4 import BeautifulSoup
from gallery import TUTORIALS
from rendered import pages

import tasks

pytestmark = pytest.mark.site

# Drawn from timings, which no two runs share.
MEASURED = {"benchmark.png", "large_vocabulary.png", "vocabulary_step.png"}


@pytest.fixture(scope="session")
def soups(site):
    return {page: BeautifulSoup((site / page).read_text(), "html.parser") for page in pages(site)}


def printed(soups, page):
    """All that the code of a page printed."""
    return "\n".join(block.get_text() for block in soups[page].select("div.sphx-glr-script-out"))


def test_the_pages_are_there(soups):
    wanted = {"index.html", "quickstart.html", "api.html", "contract.html", "moving.html", "troubleshooting.html",
              "changelog.html", "versions.html", "search.html"}
    wanted |= {f"gallery/{name}.html" for name in TUTORIALS}
    assert wanted <= set(soups)


def test_every_public_class_is_described(soups):
    """Those that gluon_kl names, and those of the modules that it names."""
    import gluon_kl

    named = {f"gluon_kl.{name}": getattr(gluon_kl, name) for name in gluon_kl.__all__}
    for name, module in list(named.items()):
        if inspect.ismodule(module):
            named.update({f"{name}.{key}": value for key, value in vars(module).items()
                          if inspect.isclass(value) and value.__module__ == name and not key.startswith("_")})
    classes = {name for name, value in named.items() if inspect.isclass(value)}
    assert len(classes) > 1
    assert classes <= {tag["id"] for soup in soups.values() for tag in soup.select("dt[id]")}


def test_no_section_of_a_docstring_is_lost(soups):
    headings = {tag.get_text().strip(": ") for tag in soups["generated/gluon_kl.KLDivLoss.html"].select("dt, p.rubric")}
    assert {"Parameters", "Inputs", "Outputs", "Raises", "Notes", "References", "Examples"} <= headings


def class_pages(soups):
    return {page: soup for page, soup in soups.items()
            if page.startswith("generated/") and soup.select("dl.class")}


def test_the_example_comes_first(soups):
    found = {page: soup for page, soup in soups.items() if page.startswith("generated/")}
    assert len(class_pages(soups)) < len(found)
    for page, soup in found.items():
        text = soup.select_one("dl.py > dd").get_text()
        others = [text.find(title) for title in ("Parameters", "Inputs", "Returns", "Raises", "Notes")]
        assert -1 < text.find("Examples") < min(filter(lambda place: place > -1, others), default=len(text)), page


@pytest.mark.parametrize("name", ["metric.KLDivergence", "metric.JSDivergence"])
def test_the_name_of_a_metric_is_whole(soups, name):
    assert soups[f"generated/gluon_kl.{name}.html"].h1.get_text().startswith(name)


def test_every_page_is_in_the_navigation(soups):
    linked = {link["href"] for link in soups["index.html"].select("header a[href]")}
    assert {page for page in soups if "/" not in page and page != "search.html"} <= linked | {"index.html"}


def test_the_table_of_versions_is_what_its_script_wrote(soups):
    rows = [[cell.get_text().strip() for cell in row.select("th, td")]
            for row in soups["versions.html"].select("table.numbers tr")]
    written = runpy.run_path(str(tasks.ROOT / "docs" / "versions.py"))["table"]()
    assert rows == [[cell.replace("``", "") for cell in row] for row in written]


def test_troubleshooting_is_in_the_navigation_and_beside_the_errors(soups):
    assert not [page for page, soup in soups.items() if "_modules" not in page
                and not soup.select("header a[href$='troubleshooting.html'], header a[aria-current]")]
    pages_of_errors = {"api.html": soups["api.html"], **class_pages(soups)}
    assert not [page for page, soup in pages_of_errors.items()
                if not soup.select("article a[href*='troubleshooting.html']")]


def test_a_search_engine_learns_what_a_page_is(soups):
    """Each has a title of its own; the landing page says what this is, and which version."""
    import gluon_kl

    titles = [soup.title.get_text() for page, soup in soups.items() if "_modules" not in page]
    assert len(set(titles)) == len(titles)
    assert all(title.endswith(" KL divergence for MXNet Gluon") for title in titles)
    landing = soups["index.html"]
    assert "VAE" in landing.select_one("meta[name=description]")["content"]
    assert f"this is version {gluon_kl.__version__}" in landing.article.get_text()


@pytest.mark.parametrize("word", ["vae", "elbo", "trpo", "pzero", "gkd", "distillm"])
def test_the_search_finds(site, word):
    assert f'"{word}":' in (site / "searchindex.js").read_text()


def test_landing_page_leads_on(soups):
    landing = soups["index.html"].article
    assert landing.select_one("pre").get_text().startswith("$ pip install")
    assert [link["href"] for link in landing.select("p.action a")] == ["gallery/kl_divergence.html", "quickstart.html"]
    ways = [link["href"] for link in landing.select("ul.ways a")]
    assert ways == ["gallery/index.html", "moving.html", "troubleshooting.html"]


@pytest.mark.parametrize("page, folder", [("index.html", "gallery/"), ("gallery/index.html", "")])
def test_every_tutorial_has_a_card(soups, page, folder):
    cards = {card.a["href"]: card for card in soups[page].select("ul.cards:not(.ways) > li")}
    assert set(cards) == {f"{folder}{name}.html" for name in TUTORIALS}
    for name, card in cards.items():
        assert card.select("svg.thumbnail"), f"{name} has no picture"
        assert len(card.select("p")) == 2, f"{name} needs a name and a line that says what it is"


def test_of_mathjax_one_file_is_shipped(site):
    assert [file.name for file in site.rglob("*") if re.search("mathjax|tex-|sre|mml", str(file.relative_to(site)))
            and file.is_file()] == ["tex-svg.js"]


def test_internal_links_and_anchors(soups, site):
    anchors = {page: {tag["id"] for tag in soup.select("[id]")} for page, soup in soups.items()}
    dead = []
    for page, soup in soups.items():
        for link in soup.select("a[href], link[href], img[src], script[src], source[src]"):
            url = urlsplit(link.get("href") or link.get("src"))
            if url.scheme or url.netloc:
                continue
            target = (site / page).parent / unquote(url.path) if url.path else site / page
            name = str(target.resolve().relative_to(site))
            if not target.is_file() or (url.fragment and name in anchors and unquote(url.fragment) not in
                                        anchors[name] | {""}):
                dead.append(f"{page}: {link.get('href') or link.get('src')}")
    assert not dead


def test_images_say_what_they_show(soups):
    mute = []
    for page, soup in soups.items():
        for image in soup.select("article img"):
            thumbnail = image.find_parent(class_="sphx-glr-thumbcontainer")  # its title stands right below
            if image.get("alt") is None or (not thumbnail and len(image["alt"].split()) < 5):
                mute.append(f"{page}: {image['src']}, alt={image.get('alt')!r}")
    assert not mute


def test_no_initials_became_a_list(soups):
    """In reStructuredText a paragraph of one line that starts with "D. P. Kingma" is item D of a list."""
    assert not [page for page, soup in soups.items() if soup.select("ol.upperalpha, ol.loweralpha, ol.upperroman")]


def test_every_tutorial_draws(soups):
    scripts = [page for page in soups if re.fullmatch(r"gallery/(?!index)\w+\.html", page)]
    assert scripts
    assert not [page for page in scripts if not soups[page].select("img.sphx-glr-single-img, img.sphx-glr-multi-img")]


def test_no_resource_comes_from_a_network(soups, site):
    remote = [f"{page}: {tag}" for page, soup in soups.items()
              for tag in soup.select("script[src], img[src], iframe[src], source[src], link[href]")
              if re.match(r"(\w+:)?//", tag.get("src") or tag.get("href"))
              and tag.get("rel") not in (["canonical"], ["license"])]
    for sheet in site.rglob("*.css"):
        remote += [f"{sheet.name}: {found}" for found in
                   re.findall(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")]+)", sheet.read_text())]
    assert not remote


def test_inline_styles_fetch_nothing(soups):
    assert not [page for page, soup in soups.items() for tag in soup.select("style, [style]")
                if re.search(r"url\(\s*['\"]?(https?:)?//", f"{tag.get('style')} {tag.string}")]


def kl(label, pred):
    """KL(label ‖ pred), in float64, written from the formula."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(label == 0, 0.0, label * np.log(label / pred)).sum(-1)


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


DIST_1, DIST_2, DIST_3, DIST_4 = np.array([[.2, .5, .2, .1], [.3, .4, .1, .2], [.1, .1, .1, .7], [0, .9, 0, .1]])
LABEL_LOGITS = np.array([[.05, .16, .9], [.8, 4.15, .05]])
PRED_LOGITS = np.array([[.7, .2, .1], [.15, .9, .05]])


@pytest.mark.parametrize("value", [
    kl(DIST_2, DIST_1), kl(DIST_2, DIST_1) / 4,
    kl(DIST_3, DIST_1), kl(DIST_3, DIST_1) / 4,
    kl(DIST_4, DIST_1),
    *kl(softmax(LABEL_LOGITS), softmax(PRED_LOGITS)),
])
def test_walkthrough_prints_what_numpy_computes(soups, value):
    found = [float(number) for number in re.findall(r"\d+\.\d{3,4}\b", printed(soups, "gallery/kl_divergence.html"))]
    assert any(abs(number - value) <= 0.5e-4 + 1e-9 for number in found), f"{value:.4f} is not among {found}"


def test_walkthrough_prints_infinity_and_no_nan(soups):
    text = printed(soups, "gallery/kl_divergence.html")
    assert re.search(r"\binf\b", text)
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def test_nothing_printed_is_an_error_or_a_warning(soups):
    meant = "ValueError: pred holds probabilities"  # the walkthrough shows it
    loud = [page for page in soups if re.search(
        r"Traceback|\w+Warning\b|\w+Error\b", printed(soups, page).replace(meant, ""))]
    assert not loud


def test_figures_are_those_of_this_build(site):
    """The build has just drawn every one: a committed figure that nobody draws any more is older than it."""
    root = tasks.ROOT
    listing = subprocess.run(["git", "ls-files", "figures"], cwd=str(root), capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout: there is no committed figure to compare with")
    committed = {Path(name).name for name in listing.stdout.split() if name.endswith(".png")} - MEASURED
    began = min(script.stat().st_mtime for script in (root / "docs" / "gallery").glob("*.py"))
    drawn = {figure.name for figure in (root / "figures").glob("*.png") if figure.stat().st_mtime >= began} - MEASURED
    assert committed == drawn
    stale = [name for name in sorted(committed) if (root / "figures" / name).read_bytes() != subprocess.run(
        ["git", "show", f":figures/{name}"], cwd=str(root), capture_output=True, check=True).stdout]
    assert not stale, f"the build draws other pictures than the committed ones: look at {stale}, then git add them"
