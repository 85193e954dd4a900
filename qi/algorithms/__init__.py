"""Post-training algorithms on arrays: no framework, arrays in and arrays out.

`ALGORITHMS` holds them by the names that recipes use. A new one is a file with a function under the decorator `algorithm`,
and its import here.
"""

from __future__ import annotations

from qi.algorithms.adaround import adaround
from qi.algorithms.awq import Reader, awq_factors, joint_awq_factors
from qi.algorithms.best_range import best_range
from qi.algorithms.codebook import kmeans, powers
from qi.algorithms.correction import (
    analytic_bias_correction,
    bias_correction,
    clipped_normal,
    match_norms,
    output_moments,
)
from qi.algorithms.descent import descent
from qi.algorithms.empirical import empirical_bias_correction
from qi.algorithms.equalize import absorb_high_bias, equalization_factors, equalize, equalize_chain
from qi.algorithms.gptq import gptq
from qi.algorithms.hqq import hqq
from qi.algorithms.matrix import MatrixView
from qi.algorithms.output_range import output_range
from qi.algorithms.problem import Problem, Solution
from qi.algorithms.reconstruction import brecq, reconstruct
from qi.algorithms.registry import ALGORITHMS, NEEDS, STAGES, Algorithm, algorithm, check_algorithm
from qi.algorithms.smooth import smoothing_factors

__all__ = [
    "ALGORITHMS",
    "NEEDS",
    "STAGES",
    "Algorithm",
    "MatrixView",
    "Problem",
    "Reader",
    "Solution",
    "absorb_high_bias",
    "adaround",
    "algorithm",
    "analytic_bias_correction",
    "awq_factors",
    "best_range",
    "bias_correction",
    "brecq",
    "check_algorithm",
    "clipped_normal",
    "descent",
    "empirical_bias_correction",
    "equalization_factors",
    "equalize",
    "equalize_chain",
    "gptq",
    "hqq",
    "joint_awq_factors",
    "kmeans",
    "match_norms",
    "output_moments",
    "output_range",
    "powers",
    "reconstruct",
    "smoothing_factors",
]
