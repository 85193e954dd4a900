"""Following a module's forward by `torch.fx`: what is entered, what its arguments become, and why it can't be followed."""

from __future__ import annotations

import functools
import inspect
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import fx

from qi.torch.conditions import UnansweredError, expect_answer, expect_asserted, is_settled, is_shape
from qi.torch.kinds import CONTAINERS, torch_class

__all__ = ["GraphTracer", "Tracer", "bind", "made_in_graphs", "named", "placed", "tensors_in"]

_MAKERS = tuple("arange empty eye full linspace ones rand randint randn zeros".split())
_TORCH = str(Path(torch.__file__).parent)
_OWN = str(Path(__file__).parent)
_APPLIES: Any = vars(torch.autograd.Function)["apply"]  # the class method itself


class Tracer(fx.Tracer):
    """Enters modules of the user's and containers; those of `torch.nn` stay whole.

    Args:
        bound: what the forward is called with: tensors, also within dicts, lists and tuples, become inputs; whatever else is
            given stays as it is. `Tracer.INPUT` stands for a tensor that isn't at hand.
        answers: to the conditions that the forward asks, and how many sizes shapes have, in this order.
    """

    INPUT = object()

    def __init__(self, bound: inspect.BoundArguments, answers: Sequence[int] = ()) -> None:
        super().__init__(param_shapes_constant=True)
        self.bound, self._answers = bound, iter(answers)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The answer to a condition.

        Raises:
            UnansweredError: the inputs would tell.
        """
        if expect_asserted(obj.node, sys._getframe(2)):  # 1 is the proxy's own
            return True
        answer = next(self._answers, None)
        if answer is None and is_settled(obj.node):
            raise UnansweredError(obj.node)
        if answer is None:
            return bool(super().to_bool(obj))
        expect_answer(obj.node, bool(answer))
        return bool(answer)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The sizes of a shape, as ``x.view(*x.shape[:-1], -1)`` asks for."""
        if not is_shape(obj.node):
            return super().iter(obj)
        return iter([obj[index] for index in range(self.length(obj))])

    def length(self, obj: fx.Proxy) -> int:
        """How many sizes a shape has: as many as for the sample inputs.

        Raises:
            UnansweredError: the inputs would tell.
            TypeError: it is no shape.
        """
        if not is_shape(obj.node):
            raise TypeError(f"len() of {obj.node.name!r}, which inputs may change, can't be followed; x.shape[0] can")
        count, answer = self.create_proxy("call_function", len, (obj,), {}), next(self._answers, None)
        if answer is None:
            raise UnansweredError(count.node)
        expect_answer((count == answer).node, True)
        return answer

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        """Whether a module becomes one call."""
        if isinstance(m, torch.jit.ScriptModule):
            return True
        own = type(m).__module__
        if own.startswith("qi.torch."):
            return not own.endswith(".transformers")
        kind = torch_class(m)
        return bool(kind) and kind not in CONTAINERS and "forward" not in vars(m)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters and buffers stand in the graph by their paths, so that what is computed of them alone isn't fixed."""
        if not isinstance(attr_val, torch.Tensor) or isinstance(attr_val, torch.nn.Parameter):
            return super().getattr(attr, attr_val, parameter_proxy_cache)
        path = next((name for name, held in self.root.named_buffers() if held is attr_val), None)
        if path is None:
            return attr_val
        if path not in parameter_proxy_cache:
            parameter_proxy_cache[path] = self.create_proxy("get_attr", path, (), {})
        return parameter_proxy_cache[path]

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """One input for each argument with a tensor in it, under the argument's name; the others as they are given."""
        inputs = {name: self._argument(name, given) for name, given in named(self.bound).items()}
        bound = inspect.BoundArguments(self.bound.signature, OrderedDict())
        for name, given in self.bound.arguments.items():
            kind = self.bound.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                bound.arguments[name] = tuple(inputs[f"{name}_{index}"] for index in range(len(given)))
            elif kind is inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = {key: inputs[key] for key in given}
            else:
                bound.arguments[name] = inputs[name]
        return lambda: self.root.forward(*bound.args, **bound.kwargs), []

    def call_module(self, m: torch.nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An attention that is asked for no weights gives None for them, which forwards may look at."""
        found = super().call_module(m, forward, args, kwargs)
        weights = args[4] if len(args) > 4 else kwargs.get("need_weights", True)
        whole = isinstance(found, fx.Proxy) and torch_class(m) == "MultiheadAttention"
        return (found[0], None) if whole and weights is False else found

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Marks what is computed under `torch.no_grad`, which a graph can't say otherwise."""
        node = super().create_node(*args, **kwargs)
        if not torch.is_grad_enabled():
            node.meta["qi_no_grad"] = True
        return node

    def _argument(self, name: str, given: Any) -> Any:
        if not tensors_in(given):
            return given
        proxy = self.create_proxy("placeholder", name, (), {})
        return proxy if _is_tensor(given) else self._unpacked(name, given, proxy)

    def _unpacked(self, name: str, given: Any, proxy: Any) -> Any:
        """The structure that is given with inputs in the place of its tensors."""
        proxy.node.meta["qi_packed"] = True

        def held(key: Any, part: Any) -> Any:
            if not tensors_in(part):
                return part
            inner = proxy[key]
            path = f"{name}.{key}"
            if not _is_tensor(part):
                return self._unpacked(path, part, inner)
            inner.node.meta["qi_input"] = path
            return inner

        if isinstance(given, dict):
            return {key: held(key, part) for key, part in given.items()}
        parts = [held(index, part) for index, part in enumerate(given)]
        if isinstance(given, list):
            return parts
        return type(given)(*parts) if hasattr(given, "_fields") else tuple(parts)


class GraphTracer(fx.Tracer):
    """Reads the code of a graph again: what a `torch.fx.GraphModule` is pickled as, for processes that are spawned, say."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        """Every module is one call."""
        return True

    def trace(self, *args: Any, **kwargs: Any) -> fx.Graph:
        """The graph."""
        with made_in_graphs():
            return super().trace(*args, **kwargs)


@contextmanager
def made_in_graphs() -> Iterator[None]:
    """While it lasts, ``torch.arange(x.shape[1])`` and the like are followed: PyTorch hands them numbers, not tensors.

    What is applied of a `torch.autograd.Function` is one call, which has the gradient that it defines.
    """
    before, measures = {name: getattr(torch, name) for name in _MAKERS}, fx.Proxy.__len__

    def applied(cls: type, *args: Any, **kwargs: Any) -> Any:
        if (cls.__module__, cls.__name__) == ("torch.utils.checkpoint", "CheckpointFunction"):
            return args[0](*args[2:])  # what it saves of memory changes no number
        if any(callable(held) and not isinstance(held, fx.Proxy) for held in args):
            raise TypeError(f"{cls.__name__} takes functions or modules")
        return _followed(_function_of(cls))(*args, **kwargs)

    for name, maker in before.items():
        setattr(torch, name, _followed(maker))
    torch.autograd.Function.apply = classmethod(applied)
    fx.Proxy.__len__ = lambda proxy: proxy.tracer.length(proxy) if isinstance(proxy.tracer, Tracer) else measures(proxy)
    try:
        yield
    finally:
        torch.autograd.Function.apply = _APPLIES
        fx.Proxy.__len__ = measures
        for name, maker in before.items():
            setattr(torch, name, maker)


@functools.cache
def _function_of(cls: type) -> Callable[..., Any]:
    """A function for ``cls.apply`` that has the name of the class, by which graphs know it; the same for two traces."""

    def function(*args: Any, **kwargs: Any) -> Any:
        return _APPLIES.__get__(None, cls)(*args, **kwargs)

    function.__name__, function.__qualname__, function.__module__ = cls.__name__, cls.__qualname__, cls.__module__
    return function


def _followed(maker: Callable[..., Any]) -> Callable[..., Any]:
    def made(*args: Any, **kwargs: Any) -> Any:
        proxies: list[fx.Proxy] = []
        fx.node.map_aggregate((args, kwargs), lambda held: proxies.append(held) if isinstance(held, fx.Proxy) else held)
        if not proxies:
            return maker(*args, **kwargs)
        return proxies[0].tracer.create_proxy("call_function", maker, args, kwargs)

    return made


def _is_tensor(given: Any) -> bool:
    return isinstance(given, torch.Tensor) or given is Tracer.INPUT


def tensors_in(given: Any) -> bool:
    """Whether a tensor is in an argument: itself, or within dicts, lists and tuples."""
    if isinstance(given, dict):
        return any(map(tensors_in, given.values()))
    if isinstance(given, (list, tuple)):
        return any(map(tensors_in, given))
    return _is_tensor(given)


def named(bound: inspect.BoundArguments) -> dict[str, Any]:
    """All arguments by the names that inputs have; those of ``*args`` are "args_0", "args_1"..."""
    found: dict[str, Any] = {}
    for name, given in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            found |= {f"{name}_{index}": held for index, held in enumerate(given)}
        elif kind is inspect.Parameter.VAR_KEYWORD:
            found |= given
        else:
            found[name] = given
    return found


def placed(error: BaseException) -> str:
    """An error in one sentence, with the place in the user's code where it rose."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((_TORCH, _OWN, "<"))]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return text.partition(". ")[0].rstrip(".") + place


def bind(
    forward: Callable[..., Any], args: tuple[Any, ...] | None, kwargs: dict[str, Any] | None
) -> inspect.BoundArguments:
    """The arguments by their names; without `args`, whatever has no default is a tensor.

    Raises:
        TypeError: they don't fit.
    """
    signature = inspect.signature(forward)
    if args is not None or kwargs:
        bound = signature.bind(*(args or ()), **(kwargs or {}))
    else:
        needed = {
            name: Tracer.INPUT
            for name, parameter in signature.parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        }
        bound = inspect.BoundArguments(signature, OrderedDict(needed))
    bound.apply_defaults()
    return bound
