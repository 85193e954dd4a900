"""Seed 004, the notebook on quantization from scratch: what each of its statements says, tutorial 01 does.

The docstring of each test is the line that it checks, word for word; the last test finds it in the seed.
"""

from __future__ import annotations

import importlib.util
import inspect
import runpy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from qi.core import IntGrid, asymmetric_params, quantize, symmetric_scale

TUTORIAL = Path(__file__).resolve().parents[2] / "tutorials" / "01_quantization_from_scratch.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tutorial_01", TUTORIAL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tutorial = _load()
params, params_sy = tutorial.PARAMS, tutorial.PARAMS_SY
asymmetric_q, asymmetric_scale, asymmetric_zero = tutorial.asymmetric_quantization(params, 8)
symmetric_q, symmetric_s = tutorial.symmetric_quantization(params, 8)
asymmetric_back = tutorial.asymmetric_dequantization(asymmetric_q, asymmetric_scale, asymmetric_zero)
symmetric_back = tutorial.symmetric_dequantization(symmetric_q, symmetric_s)
sy_q, sy_scale = tutorial.symmetric_quantization(params_sy, 8)
sy_back = tutorial.symmetric_dequantization(sy_q, sy_scale)


def numbers(printed: str) -> list[float]:
    """The numbers of an array as numpy prints it."""
    return [float(word) for word in printed.replace("[", " ").replace("]", " ").replace(",", " ").split()]


def quoted() -> str:
    """The docstring of the test that calls this."""
    test = globals()[inspect.stack()[1].function]
    assert test.__doc__
    return str(test.__doc__)


def signature(name: str) -> str:
    return f"def {name}({', '.join(inspect.signature(getattr(tutorial, name)).parameters)}):"


# --- the data ---


def test_the_fifteen_parameters() -> None:
    """
    array([199.9341,  -9.1758,   0.    ,   7.1529, 123.2222, 101.2439,
           182.7486,  88.2835,  58.6505,  -8.1758,  -4.9222, 159.3742,
           110.0036, 159.674 , 198.9341])
    """
    assert params.tolist() == numbers(quoted().replace("array(", "").replace(")", ""))


def test_the_first_is_the_maximum_and_one() -> None:
    """params[0] = params.max() + 1"""
    assert params[0] == np.round(np.sort(params)[-2] + 1, 4)


def test_the_second_is_the_minimum_less_one() -> None:
    """params[1] = params.min() - 1"""
    assert params[1] == np.round(np.sort(params)[1] - 1, 4)


def test_the_third_is_zero() -> None:
    """params[2] = 0"""
    assert params[2] == 0
    assert asymmetric_back[2] == symmetric_back[2] == 0


# --- clamping ---


def test_clamping_signature() -> None:
    """def clamping(params_arr, lower_bound, upper_bound):"""
    assert signature("clamping") == quoted()


def test_clamping_below() -> None:
    """any values below the lower bound will be set to the lower limit"""
    assert tutorial.clamping(np.array([-9.5, -2.0, -1.9]), -2, 7).tolist() == [-2.0, -2.0, -1.9]


def test_clamping_above() -> None:
    """any values above the upper bound will be set to the upper limit"""
    assert tutorial.clamping(np.array([6.9, 7.0, 99.0]), -2, 7).tolist() == [6.9, 7.0, 7.0]


def test_clamping_does_not_write_into_its_argument() -> None:
    """params_arr[params_arr < lower_bound] = lower_bound"""
    array = np.array([-9.0, 0.0, 9.0])
    array.setflags(write=False)
    assert tutorial.clamping(array, -1, 1).tolist() == [-1, 0, 1]
    assert array.tolist() == [-9, 0, 9]


# --- asymmetric ---


def test_asymmetric_quantization_signature() -> None:
    """def asymmetric_quantization(params, bits):"""
    assert signature("asymmetric_quantization") == quoted()


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12])
def test_asymmetric_scale_rule(bits: int) -> None:
    """scale = (alpha - beta) / (2**bits - 1)"""
    assert tutorial.asymmetric_quantization(params, bits)[1] == (199.9341 + 9.1758) / (2**bits - 1)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12])
def test_asymmetric_zero_point_rule(bits: int) -> None:
    """zero_point = -1*np.round(beta / scale)"""
    _, scale, zero_point = tutorial.asymmetric_quantization(params, bits)
    assert zero_point == -1 * np.round(-9.1758 / scale)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12])
def test_asymmetric_bounds(bits: int) -> None:
    """lower_bound, upper_bound = 0, (2**bits - 1)"""
    codes = tutorial.asymmetric_quantization(params, bits)[0]
    assert (codes.min(), codes.max()) == (0, 2**bits - 1)


def test_asymmetric_upper_bound_binds_where_both_ends_round_up() -> None:
    """quantized = clamping(np.round(params/scale + zero_point), lower_bound, upper_bound).astype(np.int32)"""
    values = np.array([-1.5, 1.5])  # scale 1, zero point 2: 1.5 would round to the code 4
    codes, scale, zero_point = tutorial.asymmetric_quantization(values, 2)
    assert (scale, zero_point) == (1.0, 2.0)
    assert codes.tolist() == [0, 3]


def test_asymmetric_quantization_returns_int32_codes_scale_and_zero_point() -> None:
    """return quantized, scale, zero_point"""
    codes, scale, zero_point = tutorial.asymmetric_quantization(params, 8)
    assert codes.dtype == np.int32
    assert np.shape(scale) == np.shape(zero_point) == ()


def test_asymmetric_dequantization() -> None:
    """def asymmetric_dequantization(params_q, scale, zero_point):"""
    assert signature("asymmetric_dequantization") == quoted()
    assert tutorial.asymmetric_dequantization(np.array([0, 3, 7]), 0.5, 3.0).tolist() == [-1.5, 0.0, 2.0]


# --- symmetric ---


def test_symmetric_quantization_signature() -> None:
    """def symmetric_quantization(params, bits):"""
    assert signature("symmetric_quantization") == quoted()


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12])
def test_symmetric_scale_rule(bits: int) -> None:
    """scale = alpha / (2**(bits-1) - 1)"""
    assert tutorial.symmetric_quantization(params, bits)[1] == 199.9341 / (2 ** (bits - 1) - 1)


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12])
def test_symmetric_lower_bound_is_a_slip_that_never_binds(bits: int) -> None:
    """lower_bound, upper_bound = -2**(bits - 1) - 1, 2**(bits-1) - 1"""
    largest = 2 ** (bits - 1) - 1
    for values in (params, -params, params_sy, -params_sy):
        codes, scale = tutorial.symmetric_quantization(values, bits)
        clamped_as_the_seed_does = np.clip(np.round(values / scale), -(2 ** (bits - 1)) - 1, largest)
        assert codes.tolist() == clamped_as_the_seed_does.tolist()
        assert np.abs(codes).max() == largest
    assert np.array(-129).astype(np.int8) == 127


def test_symmetric_quantization_returns_int32_codes_and_scale() -> None:
    """return quantized, scale"""
    codes, scale = tutorial.symmetric_quantization(params, 8)
    assert codes.dtype == np.int32
    assert np.shape(scale) == ()


def test_symmetric_codes_mirror() -> None:
    """ensuring that both positive and negative values are equally represented"""
    assert tutorial.symmetric_quantization(-params, 8)[0].tolist() == (-symmetric_q).tolist()


def test_symmetric_dequantization() -> None:
    """def symmetric_dequantization(params_q, scale):"""
    assert signature("symmetric_dequantization") == quoted()
    assert tutorial.symmetric_dequantization(np.array([-3, 0, 7]), 0.5).tolist() == [-1.5, 0.0, 3.5]


def test_quantization_error() -> None:
    """def quantization_error(params, params_q):"""
    assert signature("quantization_error") == quoted()


def test_quantization_error_is_the_mean_square() -> None:
    """return np.mean((params - params_q)**2)"""
    assert tutorial.quantization_error(np.array([1.0, 2.0]), np.array([1.5, 0.0])) == 2.125


# --- seeing how it plays out ---


def test_printed_asymmetric_scale_and_zero() -> None:
    """Asymmetric scale: 0.8200388235294118, zero: 11.0"""
    assert f"Asymmetric scale: {asymmetric_scale}, zero: {asymmetric_zero}" == quoted()


def test_printed_asymmetric_codes() -> None:
    """[255   0  11  20 161 134 234 119  83   1   5 205 145 206 254]"""
    assert str(asymmetric_q) == quoted()


def test_printed_symmetric_scale() -> None:
    """Symmetric scale: 1.5742842519685039"""
    assert f"Symmetric scale: {symmetric_s}" == quoted()


def test_printed_symmetric_codes() -> None:
    """[127  -6   0   5  78  64 116  56  37  -5  -3 101  70 101 126]"""
    assert str(symmetric_q) == quoted()


def test_printed_asymmetric_dequantized_values() -> None:
    """
    [200.09  -9.02   0.     7.38 123.01 100.86 182.87  88.56  59.04  -8.2
      -4.92 159.09 109.89 159.91 199.27]
    """
    assert np.round(asymmetric_back, 2).tolist() == numbers(quoted())


def test_printed_symmetric_dequantized_values() -> None:
    """
    [199.93  -9.45   0.     7.87 122.79 100.75 182.62  88.16  58.25  -7.87
      -4.72 159.   110.2  159.   198.36]
    """
    assert np.round(symmetric_back, 2).tolist() == numbers(quoted())


def test_printed_asymmetric_error() -> None:
    """Asymmetric error: 0.05"""
    error = tutorial.quantization_error(params, asymmetric_back)
    assert f"Asymmetric error: {np.round(error, 2)}" == quoted()


def test_printed_symmetric_error() -> None:
    """Symmetric error: 0.15"""
    error = tutorial.quantization_error(params, symmetric_back)
    assert f"Symmetric error: {np.round(error, 2)}" == quoted()


def test_symmetric_is_worse_on_one_sided_data() -> None:
    """it can result in higher error when the data is not symmetrically distributed"""
    errors = [tutorial.quantization_error(params, back) for back in (symmetric_back, asymmetric_back)]
    assert errors[0] > 2 * errors[1]


# --- playing around ---


def test_the_twenty_symmetric_parameters() -> None:
    """
    [-16.88845729 -14.73619101  -9.84795077  -2.16624371 -13.58845586
     -13.89295657  -5.13396663  -7.43403557  -2.02378329  -4.6139564
      13.66297264  12.94906411   4.74121694   5.52796603   5.09095534
       8.92738701   7.37523507   2.56579524  16.80063994  13.47113548]
    """
    assert params_sy.tolist() == numbers(quoted())


def test_second_printed_scale_to_a_billionth() -> None:
    """Symmetric scale: 0.13297997865189634"""
    assert sy_scale == pytest.approx(float(quoted().split()[-1]), rel=0, abs=1e-9)


def test_second_printed_codes() -> None:
    """
    [-127 -111  -74  -16 -102 -104  -39  -56  -15  -35  103   97   36   42
       38   67   55   19  126  101]
    """
    assert sy_q.tolist() == numbers(quoted())


def test_second_printed_dequantized_values() -> None:
    """
    [-16.89 -14.76  -9.84  -2.13 -13.56 -13.83  -5.19  -7.45  -1.99  -4.65
      13.7   12.9    4.79   5.59   5.05   8.91   7.31   2.53  16.76  13.43]
    """
    assert np.round(sy_back, 2).tolist() == numbers(quoted())


def test_second_printed_error() -> None:
    """Symmetric error: 0.00159"""
    assert f"Symmetric error: {np.round(tutorial.quantization_error(params_sy, sy_back), 5)}" == quoted()


# --- the library and the script as a whole ---


def test_core_gives_the_same_integers_in_a_quarter_of_the_memory() -> None:
    """**Reducing model size:** By lowering the precision of the parameters"""
    unsigned, narrow = IntGrid(8, signed=False), IntGrid(8, narrow=True)
    codes = quantize(params, *asymmetric_params(params.min(), params.max(), unsigned), unsigned)
    assert codes.tolist() == asymmetric_q.tolist()
    assert 4 * codes.nbytes == params.astype(np.float32).nbytes
    for values, expected in ((params, symmetric_q), (params_sy, sy_q)):
        scale = symmetric_scale(np.abs(values).max(), narrow)
        assert quantize(values, scale, 0, narrow).tolist() == expected.tolist()


@pytest.fixture
def run_tutorial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def run(*arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(TUTORIAL), *arguments])
        with np.printoptions():
            runpy.run_path(str(TUTORIAL), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_the_script_prints_what_the_notebook_printed(run_tutorial, tmp_path: Path) -> None:
    """
    Original:
    [199.93  -9.18   0.     7.15 123.22 101.24 182.75  88.28  58.65  -8.18
      -4.92 159.37 110.   159.67 198.93]

    Asymmetric scale: 0.8200388235294118, zero: 11.0
    [255   0  11  20 161 134 234 119  83   1   5 205 145 206 254]

    Symmetric scale: 1.5742842519685039
    [127  -6   0   5  78  64 116  56  37  -5  -3 101  70 101 126]
    """
    assert inspect.cleandoc(quoted()) in run_tutorial()
    assert not list(tmp_path.iterdir())


def test_the_script_saves_a_plot_when_given_a_path(run_tutorial, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run_tutorial("errors.png")
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")


def test_the_script_needs_no_matplotlib(run_tutorial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "qi.core gives the same codes" in run_tutorial("errors.png")
    assert not list(tmp_path.iterdir())


def test_every_quotation_stands_in_the_seed(shared_dir: Path) -> None:
    seed = " ".join((shared_dir / "seeds" / "004_quantization_notebook.md").read_text(encoding="utf-8").split())
    tests = {name: test for name, test in globals().items() if name.startswith("test_") and test.__doc__}
    assert len(tests) >= 35
    assert [name for name, test in tests.items() if " ".join(test.__doc__.split()) not in seed] == []
