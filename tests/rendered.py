"""What the tutorials left on the rendered site, for the tests that read it."""

import pytest
from bs4 import BeautifulSoup


def pages(site):
    """All pages of the site, by their path in it."""
    return sorted(str(page.relative_to(site)) for page in site.rglob("*.html") if "_static" not in page.parts)


def article(site, name):
    """The text of a tutorial's page, without the frame."""
    return BeautifulSoup((site / "gallery" / f"{name}.html").read_text("utf-8"), "html.parser").article


def printed(site, name):
    """All that a tutorial printed when the site was built."""
    return "\n".join(block.get_text() for block in article(site, name).select("div.sphx-glr-script-out"))


def lines_of(name):
    """A fixture `page` for the tests of a tutorial: the lines that it printed."""
    @pytest.fixture(scope="module")
    def page(site):
        return [line for line in printed(site, name).splitlines() if line]

    return page
