"""Sites: how tensors lie, what is turned round, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import qi.torch.lower  # noqa: F401 - the modules register what they lower
from qi.errors import ConfigError, UnsupportedError
from qi.ir.graph import QGraph, Tensor
from qi.torch.graph import trace
from qi.torch.lowering import LOWERINGS, Laid, Site, channels_last, lowering, plain_order, real_dtype


def site(module: nn.Module | None = None, shape: tuple[int | None, ...] = (None, 3, 7, 5)) -> Site:
    """A call of a module on an image."""
    graph, why = trace(nn.Sequential(module or nn.ReLU()), (torch.zeros(1, 3, 7, 5),))
    assert graph is not None, why
    x = Laid(Tensor("x", (None, 3, 7, 5)), (None, 3, 7, 5), plain_order(4))
    return Site(graph.calls[0], QGraph("g", [x.tensor], [], []), {"x"}, ((x,), {}), [(shape, "float32")])


def test_orders_of_axes() -> None:
    assert channels_last(4) == (0, 2, 3, 1)
    assert channels_last(3) == (0, 2, 1)
    assert channels_last(2) == plain_order(2) == (0, 1)
    assert (real_dtype("bfloat16"), real_dtype("int64")) == ("float32", "int64")


def test_a_tensor_is_turned_once() -> None:
    here = site()
    first, second = here.last(here.x), here.last(here.x)
    assert first is second
    assert first.shape == (None, 7, 5, 3)
    assert [op.attrs["perm"] for op in here.graph.ops] == [[0, 2, 3, 1]]
    assert here.plain(here.x) is here.x.tensor


def test_sizes_of_one_are_reshaped() -> None:
    here = site()
    x = Laid(Tensor("y", (None, 1, 1, 3)), (None, 3, 1, 1), channels_last(4))
    assert here.plain(x).shape == (None, 3, 1, 1)
    assert [op.kind for op in here.graph.ops] == ["reshape"]


def test_constants_are_turned_where_they_are() -> None:
    here = site()
    data = np.arange(6.0, dtype=np.float32).reshape(1, 3, 2)
    found = here.last(Laid(Tensor("c", data.shape, data=data), data.shape, plain_order(3)))
    np.testing.assert_array_equal(found.data, data.transpose(0, 2, 1))
    assert here.graph.ops == []


def test_a_flat_image_is_put_in_torchs_order_where_that_is_wanted() -> None:
    here = site()
    flat = Laid(Tensor("f", (None, 105)), (None, 105), (0, 1), (3, 7, 5))
    assert here.plain(flat).shape == (None, 105)
    assert [op.kind for op in here.graph.ops] == ["reshape", "transpose", "reshape"]
    assert here.unflat(flat).plain
    assert here.unflat(here.x) is here.x


def test_results_lie_as_they_do_or_as_torch_has_them() -> None:
    here = site()
    assert here.gives(Tensor("a", (None, 7, 5, 3)), channels_last(4)).order == channels_last(4)
    assert here.gives(Tensor("b", (None, 5, 7, 3)), (0, 3, 2, 1)).plain
    assert here.like(here.x, Tensor("c", here.x.tensor.shape)).plain
    x = Laid(Tensor("d", (None, 7, 5, 3)), (None, 3, 7, 5), channels_last(4))
    assert (x.axis(1), x.axis(-1), x.batch) == (3, 2, 0)
    assert here.ends_with(x, 1).plain
    assert here.ends_with(here.x, 2) is here.x


def test_the_batch_stays_in_front() -> None:
    here = site()
    turned = Laid(Tensor("t", (None, 4, 3)), (4, None, 3), (1, 0, 2))
    assert turned.batch == 1
    for call in (
        lambda: here.plain(turned),
        lambda: here.sizes(turned),
        lambda: here.reshape(turned.tensor, (12, None)),
    ):
        with pytest.raises(UnsupportedError, match="do leave the batch in front"):
            call()
    with pytest.raises(UnsupportedError, match="joins the batch with another axis"):
        here.gives(Tensor("u", (None, 3)), shape=(4, None))


def test_options_of_modules_and_functions() -> None:
    here = site(nn.LeakyReLU(0.3))
    assert here.option("negative_slope", 1) == 0.3
    here.module, here.args, here.kwargs = None, [here.x, 0.1], {"inplace": True}
    assert (here.option("negative_slope", 1), here.option("inplace", 2), here.option("other", 3, 7)) == (0.1, True, 7)
    here.args = [here.x, (0, 2), 5]
    assert here.numbers("dims") == [0, 2]
    here.args = [here.x, 1, 2]
    assert here.numbers("dims") == [1, 2]
    here.kwargs = {"dims": (3, 1)}
    assert here.numbers("dims") == [3, 1]


def test_parameters_that_stay_in_float() -> None:
    here = site(nn.Conv2d(3, 4, 1, bias=False))
    assert (here.has("weight"), here.has("bias"), here.bias(), here.granularity("weight")) == (True, False, [], None)
    assert here.weight("weight", lambda a: a.transpose(2, 3, 1, 0)).shape == (1, 1, 3, 4)


def test_refusals_name_the_module() -> None:
    error = str(site().refuse("which is a test", "stop"))
    assert error.endswith("received '0' of class ReLU, which is a test; do stop")
    here = site()
    here.args = [3]
    with pytest.raises(UnsupportedError, match="of int; do give it one tensor"):
        _ = here.x


def test_casts_where_types_differ() -> None:
    here = site()
    assert here.cast(here.x, "bfloat16").tensor is here.x.tensor
    assert here.cast(here.x, "int64").tensor.dtype == "int64"
    whole = np.arange(3)
    constant = Laid(Tensor("c", (3,), "int64", data=whole), (3,), (0,))
    assert here.cast(constant, "float32").tensor.data.dtype == np.float32
    assert [op.kind for op in here.graph.ops] == ["cast"]


def test_a_kind_has_one_lowering() -> None:
    with pytest.raises(ConfigError):
        lowering("Linear")(lambda site: site.x)
    assert "Conv2d" in LOWERINGS.names()
