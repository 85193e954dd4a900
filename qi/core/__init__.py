"""Scale and zero-point mathematics: one body for numpy, Keras (TensorFlow, JAX, torch) and torch."""

from qi.core.affine import dequantize, fake_quantize, quantize, requantize
from qi.core.granularity import Granularity, PerChannel, PerGroup, PerTensor
from qi.core.grid import Grid, IntGrid, LutGrid
from qi.core.metrics import cosine, max_abs_error, mse, sqnr_db
from qi.core.namespace import namespace_of
from qi.core.packing import pack, packed_nbytes, unpack
from qi.core.qparams import QParams, QTensor
from qi.core.scaling import SymmetricRule, asymmetric_params, power_of_two, range_of, symmetric_scale

__all__ = [
    "Granularity",
    "Grid",
    "IntGrid",
    "LutGrid",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "QParams",
    "QTensor",
    "SymmetricRule",
    "asymmetric_params",
    "cosine",
    "dequantize",
    "fake_quantize",
    "max_abs_error",
    "mse",
    "namespace_of",
    "pack",
    "packed_nbytes",
    "power_of_two",
    "quantize",
    "range_of",
    "requantize",
    "sqnr_db",
    "symmetric_scale",
    "unpack",
]
