"""Makes quantizer classes that break the contract on purpose."""

from __future__ import annotations

from typing import Any

import pytest

from qi.errors import ContractError
from qi.quantizers import BaseTrainableQuantizer, LSQQuantizer, mark_quantizer
from qi.testing import check_quantizer


def variant(base: type[BaseTrainableQuantizer] = LSQQuantizer, **members: Any) -> type[BaseTrainableQuantizer]:
    """A registered subclass of `base` with other members."""
    name = f"Broken{base.__name__}"
    cls = type(name, (base,), members | {"__module__": __name__})
    targets, methods = list(base.quantization_targets), list(base.quantization_method)
    return mark_quantizer(targets, methods, f"broken {base.identifier}", package="broken")(cls)


def assert_caught(clause: str, message: str, base: Any = LSQQuantizer, options: Any = None, **members: Any) -> None:
    """The clause passes for the base class and complains of the variant."""
    check_quantizer(base, bits=(4,), clauses=[clause])
    with pytest.raises(ContractError, match=rf"(?s)clause '{clause}', .*{message}"):
        check_quantizer(variant(base, **members), bits=(4,), clauses=[clause], **(options or {}))
