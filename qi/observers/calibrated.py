"""The statistics of one calibration: by name, with what they were made from."""

from __future__ import annotations

from collections.abc import Mapping

from qi.errors import ConfigError, InputError
from qi.observers.statistics import TensorStatistics

__all__ = ["CalibratedStatistics"]


class CalibratedStatistics(dict[str, TensorStatistics]):
    """Statistics by name, as any dict, that remember how many samples of which model they have seen.

    A dict made from them, as by ``|``, is a plain one and remembers neither.

    Args:
        statistics: By name; any text is a name.
        samples: How many samples were seen; None where it isn't known.
        model: What tells the model from any other, such as a hash of its weights; "" where it isn't known.

    Raises:
        InputError: If a name isn't text or a value isn't `TensorStatistics`.
        ConfigError: If `samples` or `model` is illegal.

    Example:
        >>> found = CalibratedStatistics({"image": TensorStatistics()}, samples=64)
        >>> list(found), found.samples, found.model
        (['image'], 64, '')
    """

    def __init__(
        self, statistics: Mapping[str, TensorStatistics], *, samples: int | None = None, model: str = ""
    ) -> None:
        super().__init__(statistics)
        for name, seen in self.items():
            if not isinstance(name, str) or not isinstance(seen, TensorStatistics):
                raise InputError(f"expected TensorStatistics by name; received a {type(seen).__name__} named {name!r}")
        if samples is not None and (type(samples) is not int or samples < 0):
            raise ConfigError(f"expected samples to be a whole number from 0 on or None; received samples={samples!r}")
        if not isinstance(model, str):
            raise ConfigError(f"expected model to be text; received model={model!r}")
        self._samples, self._model = samples, model

    @property
    def samples(self) -> int | None:
        """How many samples were seen; None where it isn't known."""
        return self._samples

    @property
    def model(self) -> str:
        """What tells the model from any other; "" where it isn't known."""
        return self._model
