"""`check_quantizer`: runs every clause of the contract over every configuration of a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qi.quantizers import BaseTrainableQuantizer
from qi.testing import configs, finite, forward, gradients, models, torch_models  # noqa: F401  each registers its clauses
from qi.testing.cases import cases_of
from qi.testing.engines import running_on
from qi.testing.registry import CLAUSES, ON_TORCH

__all__ = ["ContractSummary", "check_quantizer"]


@dataclass(frozen=True)
class ContractSummary:
    """What was checked.

    Attributes:
        quantizer: the class' name.
        cases: how many configurations were tried.
        checks: how many checks each clause made, by its name; all of them passed.
    """

    quantizer: str
    cases: int
    checks: Mapping[str, int]

    def __str__(self) -> str:
        total = sum(self.checks.values())
        return f"{self.quantizer}: {total} checks of {len(self.checks)} clauses on {self.cases} configurations passed"


def check_quantizer(
    cls: type[BaseTrainableQuantizer],
    *,
    bits: Sequence[int] = (2, 4, 8),
    clauses: Sequence[str] | None = None,
    on: str = "keras",
    **options: Any,
) -> ContractSummary:
    """Checks that a trainable quantizer class keeps the contract.

    The clauses (`qi.testing.CLAUSES`):

    * ``forward``: outside of training the forward pass equals that of ``convert2inferable()``, bit for bit;
    * ``engines``: numpy and Keras' backend, eager and compiled (``tf.function`` and XLA, ``jax.jit``), give the same bits;
    * ``gradients``: those of the tensor and of each variable equal finite differences of the surrogate that
      `qi.testing.surrogate` describes, or of the class' own ``formula(x, variables)``, where it has one;
    * ``finite``: results and gradients, at ties and clip edges, for constant tensors, 0, and huge values;
    * ``positive``: so is the scale, whatever an optimizer makes of the variables;
    * ``config``: get_config, from_config, to_dict and JSON lose nothing;
    * ``refusals``: wrong targets, methods and options are refused with errors of `qi.errors`;
    * ``saving``: a Keras model saved in the middle of training goes on training as the original, bit for bit, and converts;
    * ``training``: the loss of a toy problem falls;
    * ``modes``: training steps, eager and compiled, agree;
    * ``mixed``: ``mixed_float16`` works.

    The last four and ``engines``, ``gradients``, ``finite`` and ``positive`` import Keras, and run on its backend: TensorFlow,
    JAX or torch. With ``on="torch"`` they run on tensors and modules of torch instead, eager and traced by ``torch.compile``,
    without Keras; ``saving`` is then about ``state_dict``, ``mixed`` about bfloat16, float16 and autocast.

    Args:
        cls: the class, decorated with `qi.mark_quantizer`.
        bits: which numbers of bits to try.
        clauses: names; all by default.
        on: "keras" or "torch".
        options: more constructor arguments, such as ``estimator="ewgs"``.

    Returns:
        what was checked.

    Raises:
        ContractError: a clause doesn't hold; the message names it, the configuration and the numbers.
        ConfigError: not a registered trainable quantizer, an unknown clause, or another `on`.
        MissingDependencyError: ``on="torch"`` without torch.

    Example:
        >>> import qi
        >>> print(qi.testing.check_quantizer(qi.PACTQuantizer, bits=(4,), clauses=["forward"]))
        PACTQuantizer: 2 checks of 1 clauses on 1 configurations passed
    """
    cases = cases_of(cls, bits, options)
    wanted = {name: CLAUSES.get(name) for name in (CLAUSES.names() if clauses is None else clauses)}
    if on == "torch":
        wanted |= {name: clause for name, clause in ON_TORCH.items() if name in wanted}
    with running_on(on):
        return ContractSummary(cls.__name__, len(cases), {name: clause(cases) for name, clause in wanted.items()})
