"""How a weight tensor acts as matrices: the view on which rounding algorithms work, whatever the layer."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from qi.errors import ConfigError, InputError
from qi.typing import Array, Shape

__all__ = ["MatrixView"]


@dataclass(frozen=True)
class MatrixView:
    """A weight as G independent matrices of K inputs and N outputs: ``y[g] = x[g] @ W[g]``.

    Args:
        shape: of the tensor.
        input_axes: axes that are summed over, in the order of the features of x.
        output_axes: axes of the results.
        group_axes: axes along which matrices are independent: the channels of a depthwise convolution.
        groups: of a grouped convolution: so many runs of the last output axis see inputs of their own.

    Raises:
        ConfigError: the axes don't name each axis of the tensor once, or the groups don't divide the last output axis.

    Example:
        >>> import numpy as np
        >>> view = MatrixView((3, 3, 8, 16), (0, 1, 2), (3,))
        >>> view.matrix(np.zeros((3, 3, 8, 16))).shape
        (1, 72, 16)
        >>> MatrixView((3, 3, 8, 2), (0, 1), (3,), group_axes=(2,)).sizes
        (8, 9, 2)
    """

    shape: Shape
    input_axes: tuple[int, ...]
    output_axes: tuple[int, ...]
    group_axes: tuple[int, ...] = ()
    groups: int = 1

    def __post_init__(self) -> None:
        axes = (*self.group_axes, *self.input_axes, *self.output_axes)
        if sorted(axes) != list(range(len(self.shape))):
            raise ConfigError(f"expected axes that name each of {len(self.shape)} once; received {axes}")
        if self.groups != 1 and (
            self.groups < 1 or self.group_axes or not self.output_axes or self.shape[self.output_axes[-1]] % self.groups
        ):
            raise ConfigError(
                f"expected groups that divide the last output axis of {self.shape}; received groups={self.groups}"
            )

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(G, K, N)."""
        groups, inputs, outputs = (
            prod(self.shape[axis] for axis in axes) for axes in (self.group_axes, self.input_axes, self.output_axes)
        )
        return groups * self.groups, inputs, outputs // self.groups

    def matrix(self, tensor: Array) -> np.ndarray:
        """The tensor as ``[G, K, N]``: a view where strides allow, a copy elsewhere.

        Raises:
            InputError: a tensor of another shape.
        """
        array = np.asarray(tensor)
        if array.shape != tuple(self.shape):
            raise InputError(f"expected a tensor of shape {tuple(self.shape)}; received {array.shape}")
        groups, inputs, outputs = self.sizes
        ordered = array.transpose(self._order)
        if self.groups == 1:
            return ordered.reshape(groups, inputs, outputs)
        # The outputs of a group lie beside each other along the last axis only.
        before = prod(self.shape[axis] for axis in self.output_axes[:-1])
        split = ordered.reshape(inputs, before, self.groups, -1)
        return split.transpose(2, 0, 1, 3).reshape(groups, inputs, outputs)

    def tensor(self, matrix: Array) -> np.ndarray:
        """The tensor of which `matrix` is the ``[G, K, N]`` form.

        Raises:
            InputError: a matrix of another shape.
        """
        array = np.asarray(matrix)
        groups, inputs, outputs = self.sizes
        if array.shape != (groups, inputs, outputs):
            raise InputError(f"expected a matrix of shape {(groups, inputs, outputs)}; received {array.shape}")
        if self.groups != 1:
            before = prod(self.shape[axis] for axis in self.output_axes[:-1])
            array = array.reshape(self.groups, inputs, before, -1).transpose(1, 2, 0, 3)
        ordered = array.reshape([self.shape[axis] for axis in self._order])
        return ordered.transpose(np.argsort(self._order))

    @property
    def _order(self) -> tuple[int, ...]:
        return (*self.group_axes, *self.input_axes, *self.output_axes)
