from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from scipy.optimize import minimize

from lightning_rag.comparison.style import MARKERS, PALETTE, PAPER, canvas, looks, spread, svg

# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
PROTANOPIA = [
    [0.152286, 1.052583, -0.204868],
    [0.114503, 0.786281, 0.099216],
    [-0.003882, -0.048116, 1.051998],
]
DEUTERANOPIA = [
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.011820, 0.042940, 0.968881],
]
XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]


def linear(colour):
    value = np.array(to_rgb(colour))
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    xyz = np.array(XYZ) @ np.clip(rgb, 0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("colour", PALETTE)
def test_every_colour_stands_off_the_paper(colour):
    light, dark = (float(linear(c) @ XYZ[1]) for c in (PAPER, colour))
    assert (light + 0.05) / (dark + 0.05) >= 3  # WCAG 2.1, 1.4.11


@pytest.mark.parametrize("vision", [np.eye(3), PROTANOPIA, DEUTERANOPIA])
def test_colours_differ_without_red_or_green(vision):
    seen = [lab(np.array(vision) @ linear(colour)) for colour in PALETTE]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 15


def test_a_look_does_not_depend_on_the_order():
    names = ["rag4re", "etrag", "dro/k=1", "ruie", "noretrieval"]
    assert looks(names) == looks(names[::-1])
    assert list(looks(names)) == names


def test_few_systems_have_colours_of_their_own():
    for names in ([f"system {i}" for i in range(len(PALETTE))], ["dro", "etrag"], []):
        assert len({look.colour for look in looks(names).values()}) == len(names)


def test_many_systems_have_looks_of_their_own():
    size = len(PALETTE) * len(MARKERS)
    assert len(set(looks([f"system {i}" for i in range(size)]).values())) == size


def test_names_keep_their_colour_in_another_company():
    alone = {name: looks([name])[name].colour for name in ("dro", "etrag", "ruie")}
    together = looks(["dro", "etrag"])
    assert together["dro"].colour == alone["dro"]  # the first in the alphabet has its wish


def test_spread_leaves_what_is_far_apart():
    assert spread([3.0, 0.0, 10.0], 1) == [3.0, 0.0, 10.0]
    assert spread([], 1) == []


def test_spread_puts_equal_places_around_their_mean():
    assert spread([5.0, 5.0, 5.0], 2) == [3.0, 5.0, 7.0]


@pytest.mark.parametrize("seed", range(5))
def test_spread_moves_as_little_as_possible(seed):
    places = np.sort(np.random.default_rng(seed).uniform(0, 4, 8))
    constraints = {"type": "ineq", "fun": lambda x: np.diff(x) - 0.7}
    best = minimize(lambda x: ((x - places) ** 2).sum(), places, constraints=constraints, tol=1e-12)
    assert spread(list(places), 0.7) == pytest.approx(best.x, abs=1e-4)


def test_spread_refuses_a_negative_gap():
    with pytest.raises(ValueError, match="gap: expected 0 or more, got -1"):
        spread([1.0], -1)


def test_svg_is_small_repeatable_and_escaped():
    def draw():
        figure, (ax,) = canvas(3, 2)
        ax.plot([0, 1], [0, 1])
        ax.set_xlabel("<script>alert(1)</script> & more")
        return svg(figure)

    first = draw()
    assert first == draw()
    assert len(first) < 20_000
    assert "<script" not in first
    texts = [e.text for e in ElementTree.fromstring(first).iter() if e.tag.endswith("}text")]
    assert "<script>alert(1)</script> & more" in texts
