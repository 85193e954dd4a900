"""Post-training algorithms on arrays: no framework, arrays in and arrays out.

`ALGORITHMS` holds them by the names that recipes use. A new one is a file with a function under the decorator `algorithm`,
and its import here.
"""

from __future__ import annotations

from qi.algorithms.adaround import adaround
from qi.algorithms.codebook import kmeans, powers
from qi.algorithms.descent import descent
from qi.algorithms.gptq import gptq
from qi.algorithms.hqq import hqq
from qi.algorithms.matrix import MatrixView
from qi.algorithms.output_range import output_range
from qi.algorithms.problem import Problem, Solution
from qi.algorithms.registry import ALGORITHMS, NEEDS, STAGES, Algorithm, algorithm, check_algorithm

__all__ = [
    "ALGORITHMS",
    "NEEDS",
    "STAGES",
    "Algorithm",
    "MatrixView",
    "Problem",
    "Solution",
    "adaround",
    "algorithm",
    "check_algorithm",
    "descent",
    "gptq",
    "hqq",
    "kmeans",
    "output_range",
    "powers",
]
