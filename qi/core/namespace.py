"""The array namespaces the mathematics is written over.

Every formula of the core is one body that takes its functions from a namespace ``xp``: numpy, ``keras.ops``
(TensorFlow, JAX and torch backends) or raw torch tensors. Arrays themselves are used with operators and
``.shape`` only.
The namespace is found from the type of the arguments through ``sys.modules``; nothing is imported to look.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from qi.errors import InputError
from qi.typing import Array, Shape

__all__ = ["NUMPY", "ArrayNamespace", "namespace_of", "numpy_dtype", "to_numpy"]


# Same name and meaning everywhere.
_COMMON = set("floor ceil abs sqrt log2 exp2 tanh minimum maximum where isnan reshape".split())


class ArrayNamespace(Protocol):
    """About twenty functions with numpy's spelling; `cast` and `asarray` take numpy dtype names.

    ``beside(x, like)`` is x on the device of the tensor `like`; frameworks that see to devices themselves leave x as it is.
    """

    name: str

    def asarray(self, x: Any, dtype: str | None = None) -> Array: ...
    def frozen(self, x: np.ndarray) -> Array: ...
    def beside(self, x: Any, like: Array, /) -> Any: ...
    def cast(self, x: Array, dtype: str) -> Array: ...
    def dtype(self, x: Array) -> str: ...
    def divide(self, a: Array, b: Array) -> Array: ...
    def multiply(self, a: Array, b: Array) -> Array: ...
    def round(self, x: Array) -> Array: ...
    def floor(self, x: Array) -> Array: ...
    def ceil(self, x: Array) -> Array: ...
    def abs(self, x: Array) -> Array: ...
    def sqrt(self, x: Array) -> Array: ...
    def log2(self, x: Array) -> Array: ...
    def exp2(self, x: Array) -> Array: ...
    def tanh(self, x: Array) -> Array: ...
    def minimum(self, a: Array, b: Array) -> Array: ...
    def maximum(self, a: Array, b: Array) -> Array: ...
    def clip(self, x: Array, lo: Array, hi: Array) -> Array: ...
    def where(self, condition: Array, a: Array, b: Array) -> Array: ...
    def isnan(self, x: Array) -> Array: ...
    def sum(self, x: Array, axis: Any = None, keepdims: bool = False) -> Array: ...
    def max(self, x: Array, axis: Any = None, keepdims: bool = False) -> Array: ...
    def min(self, x: Array, axis: Any = None, keepdims: bool = False) -> Array: ...
    def reshape(self, x: Array, shape: Shape) -> Array: ...
    def repeat(self, x: Array, repeats: int, axis: int) -> Array: ...
    def searchsorted(self, sorted_values: Array, x: Array) -> Array: ...
    def take(self, values: Array, indices: Array) -> Array: ...
    def stop_gradient(self, x: Array) -> Array: ...
    def zeros_like(self, x: Array) -> Array: ...
    def custom_gradient(self, function: Callable[..., Any], *args: Array) -> Array: ...
    def asked(self, *args: Array) -> tuple[bool, ...] | None: ...


class _Numpy:
    """numpy itself; floating-point warnings are silenced where overflow and NaN are part of the contract."""

    name = "numpy"

    def __init__(self) -> None:
        for name in _COMMON | {"sum", "max", "min", "repeat", "take", "searchsorted", "zeros_like"}:
            setattr(self, name, getattr(np, name))
        self.round = np.rint

    @staticmethod
    def asarray(x: Any, dtype: str | None = None) -> np.ndarray:
        return np.asarray(x, dtype=dtype)

    @staticmethod
    def frozen(x: np.ndarray) -> np.ndarray:
        return x

    @staticmethod
    def beside(x: Any, _like: np.ndarray) -> Any:
        return x

    @staticmethod
    def cast(x: np.ndarray, dtype: str) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(x).astype(numpy_dtype(dtype), copy=False)

    @staticmethod
    def dtype(x: np.ndarray) -> str:
        return np.asarray(x).dtype.name

    @staticmethod
    def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            return np.asarray(np.divide(a, b))

    @staticmethod
    def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            return np.asarray(np.multiply(a, b))

    @staticmethod
    def clip(x: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
        return np.asarray(np.minimum(np.maximum(x, lo), hi))

    @staticmethod
    def stop_gradient(x: np.ndarray) -> np.ndarray:
        return x

    @staticmethod
    def asked(*args: np.ndarray) -> None:  # noqa: ARG004  as the others take them
        return None

    @staticmethod
    def custom_gradient(function: Callable[..., Any], *args: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(function(*args)[0])


def numpy_dtype(name: str) -> np.dtype:
    """The numpy dtype of a name, those of ml_dtypes among them."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes  # registers nothing by itself; its types are looked up by name

        kind: type | None = getattr(ml_dtypes, name, None)
        if kind is None:
            raise InputError(f"expected the name of a dtype, such as 'bfloat16'; received dtype={name!r}") from None
        return np.dtype(kind)


class _Keras:
    """``keras.ops`` on whatever backend Keras runs; created only for arrays that prove Keras is loaded."""

    name = "keras"

    def __init__(self) -> None:
        import keras

        ops = keras.ops
        self._keras, self._ops = keras, ops
        more = {"round", "multiply", "sum", "max", "min", "repeat", "take", "stop_gradient", "zeros_like"}
        for name in _COMMON | more:
            setattr(self, name, getattr(ops, name))
        if keras.backend.backend() in ("torch", "jax"):  # where Keras' own make float32 of float64
            own: Any = importlib.import_module({"torch": "torch", "jax": "jax.numpy"}[keras.backend.backend()])
            self.floor: Callable[[Array], Array] = lambda x: own.floor(ops.convert_to_tensor(x))
            self.ceil: Callable[[Array], Array] = lambda x: own.ceil(ops.convert_to_tensor(x))

    def asarray(self, x: Any, dtype: str | None = None) -> Array:
        return self._ops.convert_to_tensor(x, dtype=dtype)

    def frozen(self, x: np.ndarray) -> Array:
        """A constant that graph optimizers can't fold.

        They turn a division by a constant into a multiplication by its reciprocal, which moves codes at ties;
        a captured resource is left alone. JAX has none: its array stays on the host (an array made while a function
        is traced would leak a tracer), and `divide` guards it.
        """
        if self._keras.backend.backend() == "tensorflow":
            tf = sys.modules["tensorflow"]
            with tf.init_scope():
                return tf.Variable(x, trainable=False)
        return x if self._keras.backend.backend() == "jax" else self._ops.convert_to_tensor(x)

    def beside(self, x: Any, _like: Array) -> Any:
        return x

    def divide(self, a: Array, b: Array) -> Array:
        """``a / b``; for JAX in a form that XLA leaves alone.

        XLA divides by whatever it can see to be constant or broadcast through its reciprocal, which moves codes at
        ties. A divisor chosen by the dividend is neither, costs nothing once fused, and changes no result: NaN stays.
        """
        return self._quotient(a, b) if self._keras.backend.backend() == "jax" else self._ops.divide(a, b)

    @cached_property
    def _quotient(self) -> Callable[[Array, Array], Array]:
        """Division for JAX. Its own derivative squares the divisor, which of a scale like 1e-30 leaves 0, and so NaN."""
        jax, ops = importlib.import_module("jax"), self._ops
        plain = lambda a, b: ops.divide(a, ops.where(ops.isnan(a), a, b))
        quotient = jax.custom_jvp(plain)

        def derivative(at: Any, towards: Any) -> tuple[Array, Array]:
            (a, b), (da, db) = at, towards
            result = quotient(a, b)
            return result, ((da - result * db) / b).astype(result.dtype)

        quotient.defjvp(derivative)

        def divide(a: Array, b: Array) -> Array:
            a, b = (ops.convert_to_tensor(x) for x in (a, b))
            real = "float" in self.dtype(a) and "float" in self.dtype(b)
            return (quotient if real else plain)(a, b)

        return divide

    def cast(self, x: Array, dtype: str) -> Array:
        return self._ops.cast(x, dtype)

    def dtype(self, x: Array) -> str:
        return str(self._keras.backend.standardize_dtype(x.dtype))

    def clip(self, x: Array, lo: Array, hi: Array) -> Array:
        lo, hi = (self._ops.cast(end, x.dtype) for end in (lo, hi))
        if self._keras.backend.backend() == "tensorflow":
            return self._ops.minimum(self._ops.maximum(x, lo), hi)
        # JAX and torch halve the gradient of minimum and maximum at ties; `where` gives 1 at both edges, as TensorFlow does.
        where = self._ops.where
        x = where(x < lo, lo, x)
        return where(x > hi, hi, x)

    def asked(self, *args: Array) -> None:
        return None

    def custom_gradient(self, function: Callable[..., Any], *args: Array) -> Array:
        """``function(*args)[0]`` with the gradients that ``function(*args)[1]`` gives."""
        return self._ops.custom_gradient(function)(*args)

    def searchsorted(self, sorted_values: Array, x: Array) -> Array:
        flat = self._ops.searchsorted(sorted_values, self._ops.reshape(x, (-1,)))
        return self._ops.reshape(flat, self._ops.shape(x))


class _Torch:
    """Raw torch tensors. Numbers and numpy arrays among the arguments go to the device of the tensors."""

    name = "torch"

    def __init__(self) -> None:
        torch = sys.modules["torch"]
        self._torch = torch
        for name in (_COMMON - {"minimum", "maximum"}) | {"round", "zeros_like"}:
            setattr(self, name, getattr(torch, name))
        self._keeping, self._repeating = _autograd_functions(torch)

    def asarray(self, x: Any, dtype: str | None = None) -> Array:
        kind = None if dtype is None else self._kind(dtype)
        if isinstance(x, self._torch.Tensor):
            return x if kind is None else x.to(kind)
        if isinstance(x, (np.ndarray, np.generic)):  # torch warns about read-only memory, which shared parameters are
            x = x.copy() if self._torch.compiler.is_compiling() else np.array(x, x.dtype.newbyteorder("="))
        return self._torch.as_tensor(x, dtype=kind, device="cpu")  # not on a default device that x isn't on

    def frozen(self, x: np.ndarray) -> Array:
        """The array itself: a tensor made while a function is traced (``torch.export``, a fake mode) would outlive the trace."""
        return x

    def beside(self, x: Any, like: Array, /) -> Array:
        x = self.asarray(x)
        moves = isinstance(like, self._torch.Tensor) and x.device.type == "cpu" != like.device.type
        return x.to(like.device) if moves else x

    def _kind(self, name: str) -> Any:
        kind = getattr(self._torch, name, None)
        if not isinstance(kind, self._torch.dtype):
            raise InputError(f"expected the name of a dtype, such as 'bfloat16'; received dtype={name!r}")
        return kind

    def _both(self, a: Array, b: Array) -> tuple[Array, Array]:
        return self.beside(a, b), self.beside(b, a)

    def cast(self, x: Array, dtype: str) -> Array:
        return self.asarray(x).to(self._kind(dtype))

    def dtype(self, x: Array) -> str:
        return str(x.dtype).removeprefix("torch.")

    def divide(self, a: Array, b: Array) -> Array:
        return self._torch.divide(*self._both(a, b))

    def multiply(self, a: Array, b: Array) -> Array:
        return self._torch.multiply(*self._both(a, b))

    def minimum(self, a: Array, b: Array) -> Array:
        """The lesser; at ties a has the gradient, as of TensorFlow, where torch's own gives each a half."""
        a, b = self._both(a, b)
        return self._torch.where((a <= b) | (a != a), a, b)

    def maximum(self, a: Array, b: Array) -> Array:
        """The greater; at ties a has the gradient."""
        a, b = self._both(a, b)
        return self._torch.where((a >= b) | (a != a), a, b)

    def clip(self, x: Array, lo: Array, hi: Array) -> Array:
        if isinstance(lo, np.generic) and isinstance(hi, np.generic):  # numbers, which needn't become tensors
            return self._torch.clamp(x, lo.item(), hi.item())
        return self._torch.clamp(x, *(self.beside(end, x).to(x.dtype) for end in (lo, hi)))

    def sum(self, x: Array, axis: Any = None, keepdims: bool = False) -> Array:
        return self._torch.sum(x, dim=_axes(x, axis), keepdim=keepdims) if x.ndim and axis != () else x

    def max(self, x: Array, axis: Any = None, keepdims: bool = False) -> Array:
        return self._torch.amax(x, dim=_axes(x, axis), keepdim=keepdims) if x.ndim and axis != () else x

    def min(self, x: Array, axis: Any = None, keepdims: bool = False) -> Array:
        return self._torch.amin(x, dim=_axes(x, axis), keepdim=keepdims) if x.ndim and axis != () else x

    def repeat(self, x: Array, repeats: int, axis: int) -> Array:
        return self._torch.repeat_interleave(x, repeats, dim=axis)

    def searchsorted(self, sorted_values: Array, x: Array) -> Array:
        return self._torch.searchsorted(self.beside(sorted_values, x), x.contiguous())

    def take(self, values: Array, indices: Array) -> Array:
        return self.beside(values, indices)[indices.long()]  # uint8 would be a mask

    def stop_gradient(self, x: Array) -> Array:
        return x.detach()

    def asked(self, *args: Array) -> tuple[bool, ...] | None:
        """Of which arrays gradients may be asked for; None where a compiler or a transform watches instead of computing."""
        torch = self._torch
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return None
        return tuple(torch.is_grad_enabled() and bool(array.requires_grad) for array in args)

    def custom_gradient(self, function: Callable[..., Any], *args: Array) -> Array:
        """``function(*args)[0]`` with the gradients that ``function(*args)[1]`` gives; it takes the tensors of a third part too.

        Eagerly, what the function computed is kept until the backward pass. Transforms (``torch.func``) and compilers can't see
        what a closure keeps: for them the backward pass calls the function again.
        """
        torch = self._torch
        compiling, transformed = torch.compiler.is_compiling(), torch._C._are_functorch_transforms_active()
        learns = torch.is_grad_enabled() and any(array.requires_grad for array in args)
        if compiling and not (learns or transformed):  # torch.compile takes such a call for one with a context
            result: Array = function(*args)[0]
            return result
        return (self._repeating if compiling or transformed else self._keeping).apply(function, *args)


def _axes(x: Array, axis: Any) -> Any:
    return tuple(range(x.ndim)) if axis is None else axis


def _autograd_functions(torch: Any) -> tuple[Any, Any]:
    """Two ``torch.autograd.Function`` of ``(function, *args)``: one keeps the gradient's closure, one calls function again."""

    class Keeping(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, function: Callable[..., Any], *args: Array) -> Array:
            result, ctx.gradient, *saved = function(*args)
            ctx.save_for_backward(*(saved[0] if saved else ()))
            return result

        @staticmethod
        def backward(ctx: Any, upstream: Array) -> Any:
            return None, *ctx.gradient(upstream, *ctx.saved_tensors)

    class Repeating(torch.autograd.Function):  # type: ignore[misc]
        generate_vmap_rule = True

        @staticmethod
        def forward(function: Callable[..., Any], *args: Array) -> Array:
            return function(*args)[0]

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Array) -> None:  # noqa: ARG004  torch names it
            ctx.function = inputs[0]
            ctx.save_for_backward(*inputs[1:])

        @staticmethod
        def backward(ctx: Any, upstream: Array) -> Any:
            return None, *ctx.function(*ctx.saved_tensors)[1](upstream)

    return Keeping, Repeating


NUMPY: ArrayNamespace = _Numpy()  # type: ignore[assignment]


# Dictionaries rather than functools.lru_cache, which torch.compile warns of and traces through.
_MADE: dict[str, ArrayNamespace] = {"numpy": NUMPY}
_OF_TYPES: dict[type, str] = {}


def _made(name: str) -> ArrayNamespace:
    """The namespace of that name, made when a first array asks for it."""
    if name not in _MADE:
        made: Any = _Keras() if name == "keras" else _Torch()
        _MADE[name] = made
    return _MADE[name]


def _namespace_of_type(kind: type) -> str:
    if kind not in _OF_TYPES:
        _OF_TYPES[kind] = _look_up(kind)
    return _OF_TYPES[kind]


def _look_up(kind: type) -> str:
    if hasattr(kind, "__qi_namespace__"):
        return "its own"
    if kind in (int, float, bool, list, tuple) or issubclass(kind, (np.ndarray, np.generic)):
        return "numpy"
    roots = {base.__module__.partition(".")[0] for base in kind.__mro__}
    if "torch" in roots and "keras" not in roots:
        return "torch"
    if roots & {"keras", "tensorflow", "jax", "jaxlib"}:
        return "keras"
    if hasattr(kind, "__array__"):
        return "numpy"
    raise InputError(
        "expected a numpy array, a Keras, TensorFlow or JAX tensor, or a torch tensor; "
        f"received {kind.__name__}; do numpy.asarray(...) first"
    )


def namespace_of(*arrays: Any) -> ArrayNamespace:
    """Returns the namespace for `arrays`: Keras before torch before numpy where they are mixed.

    An array whose class has an attribute ``__qi_namespace__`` brings that as its namespace, before all others.

    Raises:
        InputError: an argument is no array.

    Example:
        >>> import numpy as np
        >>> namespace_of(np.zeros(3)).name
        'numpy'
    """
    kinds = {_namespace_of_type(type(array)) for array in arrays}
    if "its own" in kinds:
        own: ArrayNamespace = next(array.__qi_namespace__ for array in arrays if hasattr(array, "__qi_namespace__"))
        return own
    return _made(next((name for name in ("keras", "torch") if name in kinds), "numpy"))


def to_numpy(x: Any) -> np.ndarray:
    """The values of any array or tensor: torch's from whatever device, without their graph, and bfloat16 as float32.

    Example:
        >>> to_numpy([1.0, 2.0]).tolist()
        [1.0, 2.0]
    """
    torch = sys.modules.get("torch")
    if isinstance(x, getattr(torch, "Tensor", ())):  # a folder may have that name
        tensor: Any = x
        tensor = tensor.detach().cpu()
        x = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
    return np.asarray(x)
