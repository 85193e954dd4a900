"""Optional dependencies: imported when first needed, with an error that names the pip line.

The only way QI imports a package that `pip install quantizers-infrastructure` alone doesn't bring.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from qi.errors import MissingDependencyError

DISTRIBUTION = "quantizers-infrastructure"


def require(module: str, extra: str, feature: str = "", *, has: str = "") -> ModuleType:
    """Import and return an optional module.

    Args:
        module: The module's import name, dots allowed ("rich.table").
        extra: The extra of QI that installs it ("report").
        feature: What needs it, as the subject of the error's sentence ("the HTML report").
        has: A name in the module that tells the library from something else of the same name, such as a folder called
            "torch" in the working directory, which Python takes for a package.

    Returns:
        The imported module.

    Raises:
        MissingDependencyError: If the module's package isn't installed, or what Python finds under its name is
            something else. A failure *inside* an installed package is not masked: its own error comes through.

    Example:
        >>> require("json", extra="report").dumps([1])
        '[1]'
    """
    top, what, known = module.partition(".")[0], feature or "this feature", module in sys.modules
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != top:
            raise
        raise MissingDependencyError(f"{what} needs {top}; {_pip_line(extra)}", name=top) from error
    if has and not hasattr(found, has):
        place = _place_of(found)
        if not known:
            sys.modules.pop(module, None)  # whoever looks for the library there would take this for it
        raise MissingDependencyError(
            f"{what} needs {top}; received {place}, which Python finds under its name and which is something else; "
            f"do rename it or run elsewhere, and if {top} isn't installed {_pip_line(extra)}",
            name=top,
        )
    return found


def _pip_line(extra: str) -> str:
    return f"do: pip install '{DISTRIBUTION}[{extra}]'"


def _place_of(module: ModuleType) -> str:
    """Where a module comes from; of a folder without ``__init__.py``, the folder."""
    if module.__file__ is not None:
        return module.__file__
    return f"the folder {next(iter(module.__path__), module.__name__)}"
