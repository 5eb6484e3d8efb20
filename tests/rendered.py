"""The rendered site, as a fixture for the tests that read it."""

import sys

import pytest

import tasks


@pytest.fixture(scope="session")
def site(request):
    """Return the folder of the site, built first if it is stale; the build shows its progress past the capture."""
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print()
        tasks.build_site(sys.executable)
    return tasks.SITE


def pages(site):
    """All pages of the site, by their path in it."""
    return sorted(str(page.relative_to(site)) for page in site.rglob("*.html") if "_static" not in page.parts)
