"""Files of quantized torch modules in a process that never saw the module that was saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import qi
from tests.keras.fresh import run_fresh
from tests.torch.nets import branching, residual, transformer

pytestmark = pytest.mark.filterwarnings("ignore::qi.QuantizationWarning")

MAKERS = {"Residual": residual, "Transformer": transformer, "Branching": branching}

LOAD = """
import json, sys
from pathlib import Path
import torch
import qi
from tests.torch import nets
folder, wrong = Path(sys.argv[1]), []
for path in sorted([*folder.glob("*.pt"), *folder.glob("*.safetensors")]):
    name, form = path.stem.split()
    known = torch.load(folder / f"{name} {form}.known", weights_only=True)
    module = qi.torch.load_model(path, getattr(nets, name)())
    if module.training:
        optimizer = torch.optim.SGD(module.parameters(), 0.05)
        torch.manual_seed(5)
        for _ in range(2):
            optimizer.zero_grad()
            module(known["x"]).square().mean().backward()
            optimizer.step()
        module = qi.torch.convert(module)
    with torch.no_grad():
        if not torch.equal(module(known["x"]), known["y"]):
            wrong.append(path.name)
print(json.dumps(wrong), "keras" in sys.modules)
"""


def save(folder: Path, name: str, form: str, module: torch.nn.Module, x: torch.Tensor) -> None:
    """The module in both formats, and what it gives once it is trained to the end."""
    for suffix in (".pt", ".safetensors"):
        qi.torch.save_model(module, folder / f"{name} {form}{suffix}")
    if module.training:
        train(module, x)
        module = qi.torch.convert(module)
    with torch.no_grad():
        torch.save({"x": x, "y": module(x)}, folder / f"{name} {form}.known")


def train(module: torch.nn.Module, x: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    torch.manual_seed(5)
    for _ in range(2):
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()


def test_a_fresh_process_gives_the_same_bits_and_trains_on(tmp_path):
    for name, maker in MAKERS.items():
        net, x = maker()
        save(tmp_path, name, "quantized", qi.torch.quantize_model(net, "w8a8", x, progress=False)[0], x)
        qat = qi.torch.prepare_qat(net, "w4a8", x, progress=False)
        train(qat, x)
        save(tmp_path, name, "converted", qi.torch.convert(qat), x)
        save(tmp_path, name, "training", qat, x)
    files = [path for path in tmp_path.iterdir() if path.suffix != ".known"]
    assert len(files) == 18
    wrong, keras = run_fresh(LOAD, tmp_path).splitlines()[-1].rsplit(" ", 1)
    assert json.loads(wrong) == []
    assert keras == "False"


def test_files_of_frozen_modules_are_small(tmp_path):
    net, x = transformer()
    sizes = {
        recipe: qi.torch.save_model(
            qi.torch.quantize_model(net, recipe, x, progress=False)[0], tmp_path / f"{recipe}.safetensors"
        )
        for recipe in ("w8", "w4")
    }
    weights = {recipe: sum(t.nbytes for t in qi.torch.stored.read(path)[1].values()) for recipe, path in sizes.items()}
    full = sum(tensor.nbytes for tensor in net.state_dict().values())
    assert weights["w8"] < 0.5 * full
    assert weights["w4"] < 0.4 * full
