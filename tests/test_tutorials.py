"""What holds for each tutorial."""

import gallery
import pytest
from rendered import printed


@pytest.mark.site
@pytest.mark.parametrize("name", gallery.TUTORIALS)
def test_output_fits_a_phone(site, name):
    text = printed(site, name)
    assert text and max(map(len, text.splitlines())) <= gallery.PHONE
    assert "nan" not in text.replace("NaN in the padding", "").lower()


@pytest.mark.parametrize("name", gallery.TUTORIALS)
def test_progress_is_shown_on_terminals_alone(name):
    source = (gallery.ROOT / "tutorials" / f"{name}.py").read_text("utf-8")
    assert source.count("disable=None") == source.count("tqdm(") > 0
