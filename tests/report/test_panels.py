from __future__ import annotations

import math

import pytest

from qi.report.panels import PANELS, short, tidy
from qi.report.view import Layer

figure_module = pytest.importorskip("matplotlib.figure")
WEIGHTS, BYTES, ACTIVATIONS = PANELS


def layer(path="conv", **values):
    empty = {"weight_db": None, "activation_db": None, "total_db": None, "bytes_before": 0, "bytes_after": 0}
    return Layer(path=path, **{**empty, **values})


def drawn(panel, layers, *, horizontal):
    ax = figure_module.Figure().subplots()
    tidy(ax, panel, horizontal=horizontal)
    panel.draw(ax, layers, horizontal)
    return ax


def test_a_panel_knows_what_it_shows():
    assert [panel.has(layer(weight_db=3.0)) for panel in PANELS] == [True, False, False]
    assert [panel.has(layer(bytes_before=3)) for panel in PANELS] == [False, True, False]
    assert [panel.has(layer(total_db=3.0)) for panel in PANELS] == [False, False, True]
    assert not ACTIVATIONS.has(layer(total_db=math.inf))


def test_bars_are_as_long_as_their_values_and_infinite_ones_fit():
    layers = [layer(weight_db=db) for db in (5.0, 60.0, math.inf, -math.inf, None)]
    assert [bar.get_width() for bar in drawn(WEIGHTS, layers, horizontal=True).patches] == [5.0, 60.0, 60.0, 0.0, 0.0]
    assert [bar.get_height() for bar in drawn(WEIGHTS, layers, horizontal=False).patches] == [5.0, 60.0, 60.0, 0.0, 0.0]
    exact = [layer(weight_db=math.inf)]
    assert drawn(WEIGHTS, exact, horizontal=True).patches[0].get_width() == 50.0


def test_weights_in_float_are_marked():
    ax = drawn(WEIGHTS, [layer(weight_db=20.0, bytes_before=8), layer(bytes_before=8)], horizontal=True)
    assert [text.get_text() for text in ax.texts if text.get_style() == "italic"] == ["float"]


def test_all_errors_so_far_are_dots_or_a_line():
    layers = [layer(activation_db=40.0, total_db=20.0), layer(total_db=None), layer(total_db=10.0)]
    dots = drawn(ACTIVATIONS, layers, horizontal=True).collections[-1].get_offsets().tolist()
    assert dots == [[20.0, 0.0], [10.0, 2.0]]
    (line,) = drawn(ACTIVATIONS, layers, horizontal=False).get_lines()
    assert line.get_xydata().tolist() == [[0.0, 20.0], [2.0, 10.0]]


def test_sizes_are_a_bar_in_a_bar_with_their_ratio():
    layers = [layer(bytes_before=400, bytes_after=100), layer(bytes_before=80, bytes_after=80), layer()]
    ax = drawn(BYTES, layers, horizontal=True)
    assert [bar.get_width() for bar in ax.patches] == [400, 80, 0, 100, 80, 0]
    assert [text.get_text() for text in ax.texts[1:]] == ["0.25x", "1x"]


def test_numbers_of_neighbours_are_lifted_apart():
    layers = [layer(f"conv{place}", weight_db=5.0 if place in (10, 11) else 30.0) for place in range(200)]
    marks = [text for text in drawn(WEIGHTS, layers, horizontal=False).texts if text.get_text() in {"1", "2"}]
    assert [mark.get_position()[1] for mark in marks] == [4, 17]


def test_names_keep_their_end_and_are_no_mathematics():
    assert short("a" * 30 + "/block/conv_with_a_name") == "…" + ("a" * 30 + "/block/conv_with_a_name")[-37:]
    assert short("x$y$") == r"x\$y\$"
