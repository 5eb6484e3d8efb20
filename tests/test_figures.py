"""What every figure shares: a size that a phone can show, colours that every eye can tell apart, and the dark theme."""

import re
from itertools import combinations

import matplotlib.image
import numpy as np
import pytest
from gallery import ROOT

WHITE, DARK = np.ones(3), np.array([0x14, 0x18, 0x1E]) / 255  # the theme's page, by day and by night
# Machado, Oliveira and Fernandes 2009, for complete colour blindness of each kind, on linear RGB.
EYES = {name: np.array(numbers).reshape(3, 3) for name, numbers in {
    "normal": np.eye(3),
    "deuteranopia": [.367322, .860646, -.227968, .280085, .672501, .047413, -.011820, .042940, .968881],
    "protanopia": [.152286, 1.052583, -.204868, .114503, .786281, .099216, -.003882, -.048116, 1.051998],
    "tritanopia": [1.255528, -.076749, -.178779, -.078411, .930809, .147602, .004733, .691367, .303900],
}.items()}
# hue-rotate(180deg) of the Filter Effects Module, as site.css uses it
TURN = np.array([[-.574, 1.430, .144], [.426, .430, .144], [.426, 1.430, -.856]])
TO_XYZ = np.array([[.4124564, .3575761, .1804375], [.2126729, .7151522, .0721750], [.0193339, .1191920, .9503041]])


def rgb(color):
    return np.array([int(color[i:i + 2], 16) for i in (1, 3, 5)]) / 255


def linear(color):
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def by_night(color):
    """What the filter and the blending of site.css make of a colour."""
    return 1 - (1 - np.clip(TURN @ (1 - color), 0, 1)) * (1 - DARK)


def contrast(color, page):
    """The contrast ratio of the Web Content Accessibility Guidelines."""
    lighter, darker = sorted((TO_XYZ[1] @ linear(color), TO_XYZ[1] @ linear(page)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def lab(color, eye):
    xyz = TO_XYZ @ np.clip(EYES[eye] @ linear(color), 0, 1) / (TO_XYZ @ np.ones(3))
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


THEMES = {"light": (lambda color: color, WHITE), "dark": (by_night, DARK)}


@pytest.mark.parametrize("theme", THEMES)
def test_marks_and_letters_stand_out(plots, theme):
    shown, page = THEMES[theme]
    for mark, letters in plots.LETTERS.items():
        assert contrast(shown(rgb(mark)), page) >= 3, mark
        assert contrast(shown(rgb(letters)), page) >= 4.5, letters
    assert contrast(shown(rgb(plots.GREY)), page) >= 4.5
    assert contrast(shown(np.zeros(3)), shown(rgb(plots.SHADE))) >= 4.5, "letters on a shade"


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("eye", EYES)
def test_colours_are_told_apart(plots, theme, eye):
    """20 units of CIELAB lie between two colours, ten times what side by side is just noticeable."""
    shown, _ = THEMES[theme]
    for one, other in combinations(plots.LETTERS, 2):
        assert np.linalg.norm(lab(shown(rgb(one)), eye) - lab(shown(rgb(other)), eye)) > 20, (one, other)


def test_lines_and_sliders_have_the_same_colours(plots):
    colors = [plots.FIRST, plots.SECOND, plots.THIRD, plots.FOURTH]
    cycle = re.search(r"prop_cycle: .*", (ROOT / "tutorials" / "matplotlibrc").read_text()).group()
    assert re.findall(r"[0-9A-F]{6}", cycle) == [color[1:] for color in colors]
    style = (ROOT / "docs" / "static" / "tutorial.css").read_text()
    names = "1", "0", "term", "other-term"
    for theme, selector in (("light", r"^\.sliders-tool"), ("dark", r'^html\[data-theme="dark"\] \.sliders-tool')):
        rule = re.search(selector + r" \{.*?\}", style, re.DOTALL | re.MULTILINE).group()
        for name, color in zip(names, colors):
            found = rgb(re.search(rf"--sliders-{name}: (#[0-9A-F]{{6}});", rule).group(1))
            np.testing.assert_allclose(found, THEMES[theme][0](rgb(color)), atol=0.5 / 255, err_msg=f"{name}, {theme}")


def test_letters_are_large_enough_on_a_phone():
    """A figure of 5 inches shows 11 points 11 pixels high where an article is 358 pixels wide."""
    drawn = [figure for figure in (ROOT / "figures").glob("*.png") if figure.name != "benchmark.png"]
    assert drawn
    for figure in drawn:
        assert matplotlib.image.imread(str(figure)).shape[1] == 5 * 150, figure.name
    sizes = [float(line.split(":")[1]) for line in (ROOT / "tutorials" / "matplotlibrc").read_text().splitlines()
             if "size:" in line and "figure.figsize" not in line and "major" not in line and "minor" not in line]
    assert min(sizes) * 358 / 5 / 72 > 10.9
