"""The contract suite: what every trainable quantizer promises, checked for a class of your own in one call.

Example:
    >>> import qi
    >>> summary = qi.testing.check_quantizer(qi.LSQQuantizer, bits=(4,), clauses=("forward", "config"))
    >>> sorted(summary.checks)
    ['config', 'forward']
"""

from qi.errors import ContractError
from qi.testing.cases import Case, cases_of
from qi.testing.contract import ContractSummary, check_quantizer
from qi.testing.registry import CLAUSES

__all__ = ["CLAUSES", "Case", "ContractError", "ContractSummary", "cases_of", "check_quantizer"]
