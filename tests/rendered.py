"""The rendered site, as a fixture for the tests that read it."""

import functools
import sys

import pytest
import tasks


@functools.lru_cache(maxsize=None)
def failure():
    """Build the site if it is stale, once, and return what went wrong."""
    print()
    try:
        tasks.build_site(sys.executable)
    except tasks.CannotRun as reason:
        return str(reason)
    return None


@pytest.fixture(scope="session")
def site(request):
    """Return the folder of the site; its build shows its progress past pytest's capture."""
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        reason = failure()
    if reason:
        pytest.fail(reason, pytrace=False)
    return tasks.SITE


def pages(site):
    """All pages of the site, by their path in it."""
    return sorted(str(page.relative_to(site)) for page in site.rglob("*.html") if "_static" not in page.parts)
