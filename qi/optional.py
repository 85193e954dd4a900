"""Optional dependencies: imported when first needed, with an error that names the pip line.

The only way QI imports a package that `pip install quantizers-infrastructure` alone doesn't bring.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from qi.errors import MissingDependencyError

DISTRIBUTION = "quantizers-infrastructure"


def require(module: str, extra: str, feature: str = "") -> ModuleType:
    """Import and return an optional module.

    Args:
        module: The module's import name, dots allowed ("rich.table").
        extra: The extra of QI that installs it ("report").
        feature: What needs it, as the subject of the error's sentence ("the HTML report").

    Returns:
        The imported module.

    Raises:
        MissingDependencyError: If the module's package isn't installed. A failure *inside* an installed
            package is not masked: its own error comes through.

    Example:
        >>> require("json", extra="report").dumps([1])
        '[1]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top:
            raise
        raise MissingDependencyError(
            f"{feature or 'this feature'} needs {top}; do: pip install '{DISTRIBUTION}[{extra}]'", name=top
        ) from error
