from __future__ import annotations

import math
import struct
import subprocess
import sys
from dataclasses import replace

import pytest

from qi.errors import MissingDependencyError
from qi.ledger import QuantizationReport
from qi.report import plots
from qi.report.plots import MAX_NAMED_LAYERS, plot_report, png


def titles(figure):
    return [ax.get_title(loc="left") for ax in figure.axes]


def texts(ax):
    return [text.get_text() for text in ax.texts]


def size(image):
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", image[16:24])


@pytest.mark.parametrize("layers", [1, 2, MAX_NAMED_LAYERS, MAX_NAMED_LAYERS + 1, 500])
def test_models_of_every_size_give_a_picture(make_report, layers):
    width, height = size(png(make_report(layers), dpi=60))
    assert width == 660
    assert 50 < height < 700


def test_few_layers_are_named_and_measured(make_report):
    figure = plot_report(make_report(8))
    assert titles(figure) == ["Weights: SQNR, dB", "Weights: bytes", "Activations: SQNR, dB"]
    names = [[tick.get_text() for tick in ax.get_yticklabels()] for ax in figure.axes]
    assert names[0] == names[2] == [f"block/conv{i}" for i in range(8)]
    assert names[1] == [""] * 8
    assert {"3.0", "42.0"} <= set(texts(figure.axes[0]))
    assert "exact" in texts(figure.axes[2])
    lengths = [bar.get_width() for bar in figure.axes[0].patches]
    assert lengths[0] == 3.0
    assert lengths == sorted(lengths)


def test_of_many_layers_the_worst_are_named(make_report):
    figure = plot_report(make_report(200))
    legend = texts(figure.axes[0])[-1].splitlines()
    assert legend[0] == "1  block/conv0  3.0 dB"
    assert len(legend) == 6
    assert len(figure.axes[0].patches) == 200


def test_colours_say_how_bad_it_is(make_report):
    figure = plot_report(make_report(8))
    colours = [bar.get_facecolor() for bar in figure.axes[0].patches]
    assert len(set(colours)) == 3
    assert colours[0] != colours[2] != colours[-1]


def test_panels_without_data_are_left_out(make_report):
    assert titles(plot_report(make_report(3, activations=False))) == ["Weights: SQNR, dB", "Weights: bytes"]
    outputs = tuple(row for row in make_report(3).rows if row.kind == "activation")
    assert titles(plot_report(QuantizationReport(recipe="a8", rows=outputs))) == ["Activations: SQNR, dB"]
    assert size(png(QuantizationReport(recipe="w8", rows=()), dpi=60)) == (660, 60)


@pytest.mark.parametrize("layers", [4, 60])
def test_extreme_ratios_and_names_are_drawn(make_report, layers):
    rows = list(make_report(layers).rows)
    for place, db in enumerate((-math.inf, math.inf, -12.0, None)):
        rows[3 * place] = replace(rows[3 * place], sqnr_db=db, layer="層/$x^2$_" + "long" * 20)
    rows = [replace(row, layer=f"{row.layer}{place}") for place, row in enumerate(rows)]
    assert size(png(QuantizationReport(recipe="w4", rows=tuple(rows)), dpi=60))[0] == 660


def test_a_model_of_float_weights_only(make_report):
    biases = tuple(row for row in make_report(3).rows if row.name == "bias")
    assert titles(plot_report(QuantizationReport(recipe="w8", rows=biases))) == ["Weights: bytes"]


def test_the_same_report_gives_the_same_file(make_report):
    assert png(make_report(5), dpi=60) == png(make_report(5), dpi=60)


def test_no_window_system_is_touched():
    program = (
        "import sys\n"
        "from qi.ledger import QuantizationReport\n"
        "from qi.report import png\n"
        "assert 'matplotlib' not in sys.modules\n"
        "png(QuantizationReport(recipe='w8', rows=()))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr


def test_without_matplotlib_the_pip_line_is_named(make_report, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        MissingDependencyError, match=r"plot of a report needs matplotlib; do: pip install '.*\[report\]'"
    ):
        plots.png(make_report(2))


@pytest.mark.parametrize("layers", [3, MAX_NAMED_LAYERS + 1])
def test_the_head_names_model_recipe_and_algorithms(make_report, layers):
    report = make_report(layers)
    plain = plot_report(report)
    assert plain.get_suptitle() == "small, recipe w4a8"
    told = "gptq damping=0.1 (7 of 9 quantized weights); hqq (" + ", ".join(["layer/kernel"] * 12) + ")"
    figure = plot_report(replace(report, model="a$b$", settings={"algorithms": told}))
    title, *lines = figure.get_suptitle().splitlines()
    assert title == r"a\$b\$, recipe w4a8"
    assert " ".join(lines) == f"algorithms: {told}"
    assert len(lines) == 2
    assert figure.get_figheight() > plain.get_figheight()
