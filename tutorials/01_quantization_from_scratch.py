"""Quantization from scratch: real numbers to 8-bit integers and back, in a few short functions of numpy.

    python tutorials/01_quantization_from_scratch.py [plot.png]

A float32 weight takes four bytes. Most networks predict just as well when it takes one, and one byte is
quicker to load, quicker to multiply and cheaper in energy: hence quantization. The idea fits in a line.
Choose a step, the *scale*; count how many steps each number is, its *code*; store the codes. This script
builds that up, checks every number it prints, looks hard at three details that are easy to get wrong, and
ends with the library's own functions, which give the same integers.
"""

import importlib.util
import sys

import numpy as np

from qi.core import IntGrid, asymmetric_params, quantize, symmetric_scale

# Fifteen numbers that could be a layer's activations: nearly all positive, both ends and one 0 set by hand.
# Then twenty that could be weights: as many below zero as above.
# fmt: off
PARAMS = np.array([199.9341, -9.1758, 0.0, 7.1529, 123.2222, 101.2439, 182.7486, 88.2835, 58.6505, -8.1758,
                   -4.9222, 159.3742, 110.0036, 159.674, 198.9341])
PARAMS_SY = np.array([-16.88845729, -14.73619101, -9.84795077, -2.16624371, -13.58845586, -13.89295657,
                      -5.13396663, -7.43403557, -2.02378329, -4.6139564, 13.66297264, 12.94906411,
                      4.74121694, 5.52796603, 5.09095534, 8.92738701, 7.37523507, 2.56579524,
                      16.80063994, 13.47113548])
# fmt: on


# --- 1. Clamping: no code may leave the range that its integer type can hold --------------------------------
def clamping(params_arr, lower_bound, upper_bound):
    params_arr = np.array(params_arr)  # a copy: the next two lines write, and the array belongs to the caller
    params_arr[params_arr < lower_bound] = lower_bound
    params_arr[params_arr > upper_bound] = upper_bound
    return params_arr


# --- 2. Asymmetric: spread the codes 0..255 from the smallest value to the largest --------------------------
def asymmetric_quantization(params, bits):
    alpha, beta = np.max(params), np.min(params)
    scale = (alpha - beta) / (2**bits - 1)
    zero_point = -1 * np.round(beta / scale)  # the code that stands for 0.0, so that 0.0 comes back exact
    quantized = clamping(np.round(params / scale + zero_point), 0, 2**bits - 1).astype(np.int32)
    return quantized, scale, zero_point


def asymmetric_dequantization(params_q, scale, zero_point):
    return scale * (params_q - zero_point)


# --- 3. Symmetric: code 0 is 0.0, with as many codes below as above; no zero point, cheaper arithmetic ---
def symmetric_quantization(params, bits):
    alpha = np.max(np.abs(params))
    bound = 2 ** (bits - 1) - 1
    scale = alpha / bound
    quantized = clamping(np.round(params / scale), -bound, bound).astype(np.int32)
    return quantized, scale


def symmetric_dequantization(params_q, scale):
    return scale * params_q


# --- 4. The price: what comes back is not quite what went in ------------------------------------------------
def quantization_error(params, params_q):
    return np.mean((params - params_q) ** 2)


# --- 5. How it plays out ------------------------------------------------------------------------------------
def both_ways():
    asymmetric_q, asymmetric_scale, asymmetric_zero = asymmetric_quantization(PARAMS, 8)
    symmetric_q, scale = symmetric_quantization(PARAMS, 8)
    print(f"Original:\n{np.round(PARAMS, 2)}\n")
    print(f"Asymmetric scale: {asymmetric_scale}, zero: {asymmetric_zero}\n{asymmetric_q}\n")
    print(f"Symmetric scale: {scale}\n{symmetric_q}\n")
    assert (asymmetric_scale, asymmetric_zero, scale) == (0.8200388235294118, 11.0, 1.5742842519685039)
    assert asymmetric_q.tolist() == [255, 0, 11, 20, 161, 134, 234, 119, 83, 1, 5, 205, 145, 206, 254]
    assert symmetric_q.tolist() == [127, -6, 0, 5, 78, 64, 116, 56, 37, -5, -3, 101, 70, 101, 126]
    asymmetric = asymmetric_dequantization(asymmetric_q, asymmetric_scale, asymmetric_zero)
    symmetric = symmetric_dequantization(symmetric_q, scale)
    errors = np.round([quantization_error(PARAMS, asymmetric), quantization_error(PARAMS, symmetric)], 2)
    print(f"Dequantize Asymmetric:\n{np.round(asymmetric, 2)}\n")
    print(f"Dequantize Symmetric:\n{np.round(symmetric, 2)}\n")
    print(f"  Asymmetric error: {errors[0]}\n   Symmetric error: {errors[1]}\n")
    assert errors.tolist() == [0.05, 0.15]
    # Why three times worse? Hardly anything lies below zero, so the symmetric codes -127..-7 go unused and
    # the steps are twice as wide. A step s costs about s**2 / 12: 0.82**2 / 12 = 0.056, and we found 0.05.
    return asymmetric, symmetric


def playing_around():
    codes, scale = symmetric_quantization(PARAMS_SY, 8)  # data with two equal sides waste no codes
    error = np.round(quantization_error(PARAMS_SY, symmetric_dequantization(codes, scale)), 5)
    print(f"Symmetric data, scale: {scale}, error: {error}\n{codes}\n")
    assert np.isclose(scale, 0.13297997865189634, rtol=0, atol=1e-9)  # the data above end at the eighth digit
    assert codes[:10].tolist() == [-127, -111, -74, -16, -102, -104, -39, -56, -15, -35]
    assert codes[10:].tolist() == [103, 97, 36, 42, 38, 67, 55, 19, 126, 101]
    assert error == 0.00159


# --- 6. Three details that the notebook retold here has wrong or leaves unsaid ------------------------------
def three_details():
    # a) Its clamping made no copy and wrote into the array it was given: fine for a temporary, not for data.
    mine = np.array([-300.0, 5.0, 300.0])
    assert (clamping(mine, -127, 127).tolist(), mine.tolist()) == ([-127, 5, 127], [-300, 5, 300])
    # b) Its symmetric lower bound was -2**(bits - 1) - 1 = -129. That never binds: the scale comes from the
    #    largest magnitude, so no code is below -127. But int8 ends at -128; a real -129 wraps around to +127.
    assert symmetric_quantization(-PARAMS, 8)[0].min() == -127
    assert np.array(-129).astype(np.int8) == 127
    # c) round(x/s + z) is not round(x/s) + z. numpy rounds halves to the even neighbour, and adding an odd z
    #    swaps odd and even. Both are half a step off, but integer runtimes add z last, as does the library.
    ties, z = np.array([0.5, 1.5, 2.5]), 11
    before, after = np.round(ties + z), np.round(ties) + z
    print(f"x/s = {ties}, z = {z}: round(x/s + z) = {before}, round(x/s) + z = {after}\n")
    assert (before.tolist(), after.tolist()) == ([12, 12, 14], [11, 13, 13])


# --- 7. The same integers from the library, in one byte each ------------------------------------------------
def the_library():
    grid = IntGrid(8, signed=False)  # 0..255
    scale, zero_point = asymmetric_params(PARAMS.min(), PARAMS.max(), grid)
    assert (quantize(PARAMS, scale, zero_point, grid) == asymmetric_quantization(PARAMS, 8)[0]).all()
    grid = IntGrid(8, signed=True, narrow=True)  # -127..127
    for values in (PARAMS, PARAMS_SY):
        codes = quantize(values, symmetric_scale(np.abs(values).max(), grid), 0, grid)
        assert (codes == symmetric_quantization(values, 8)[0]).all()
    print(f"qi.core gives the same codes, as {codes.dtype}.")


def plot(path, **restored):
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(7, 3.5), layout="constrained")).subplots()
    for name, values in restored.items():
        axes.plot(PARAMS, values - PARAMS, "o", label=name)
    axes.set(xlabel="value", ylabel="error", title="8 bits: what comes back minus what went in")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    np.set_printoptions(suppress=True)
    asymmetric, symmetric = both_ways()
    playing_around()
    three_details()
    the_library()
    if len(sys.argv) > 1 and importlib.util.find_spec("matplotlib"):
        plot(sys.argv[1], asymmetric=asymmetric, symmetric=symmetric)
