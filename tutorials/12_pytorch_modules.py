"""PyTorch: the same quantizers around torch modules, from one layer by hand to a trained network in a file.

    python tutorials/12_pytorch_modules.py

It needs PyTorch and ONNX Runtime: pip install 'quantizers-infrastructure[torch,onnx]'; no Keras is loaded. Everything has its
name from the Keras side (tutorials 02 to 06) and lives in `qi.torch`; the arithmetic isn't a second one but the same code, so
codes agree bit for bit. The network is a small one of convolutions, trained on the 500 images that ship with QI, at half size.
"""

# ruff: noqa: D102
import os
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

import qi
import qi.torch
from qi.demo import load_demo_data
from qi.quantizers.trainable import positive

FAST = os.environ.get("QI_FAST") == "1"  # fewer test images and epochs, for a quick look
EPOCHS = 4 if FAST else 8

torch.manual_seed(0)
torch.set_num_threads(1)
data = load_demo_data()


def half(images):
    """Of 14 x 14 pixels, channels first, as torch has them."""
    return nn.functional.avg_pool2d(torch.tensor(images).permute(0, 3, 1, 2), 2)


x, y = half(data.x_calib), torch.tensor(data.y_calib).long()
x_test, y_test = half(data.x_test[:: 4 if FAST else 1]), torch.tensor(data.y_test[:: 4 if FAST else 1]).long()


# --- 1. One layer by hand -----------------------------------------------------------------------------------
# A quantizer, a dispatcher that says which parameter gets it, a wrapper that runs the layer with it. The layer isn't
# changed: not its parameters, not what they require gradients for. Paths of parameters are torch's own, dots and all.
layer = nn.Conv2d(1, 6, 3, bias=False)
w_quantizer = qi.WeightsSymmetricInferableQuantizer(num_bits=4, threshold=0.4, per_channel=True)
dispatcher = qi.torch.PytorchNodeQuantizationDispatcher({"weight": w_quantizer})
wrapper = qi.torch.PytorchQuantizationWrapper(layer, dispatcher)
tensor = wrapper.get_quantized_tensors()["weight"]
print(f"One layer: codes {tensor.codes.min()} to {tensor.codes.max()} of shape {tuple(tensor.codes.shape)}")
rounded = torch.tensor(tensor.dequantize())
assert torch.equal(wrapper(x[:8]), nn.functional.conv2d(x[:8], rounded))

# Quantizers don't mind whose arrays they get: numpy's give the very numbers.
weight = layer.weight.detach()
assert np.array_equal(w_quantizer(weight).numpy(), w_quantizer(weight.numpy()))
assert np.array_equal(w_quantizer(weight.numpy()), tensor.dequantize())


# --- 2. A trained network -----------------------------------------------------------------------------------
class Net(nn.Module):
    """A convolution, a depthwise and a pointwise one with a way around them, another, and a head."""

    def __init__(self, width=12):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.pointwise, self.norm = nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)
        self.down = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.head = nn.Linear(2 * width * 9, 10)

    def forward(self, images):
        z = nn.functional.max_pool2d(self.stem(images), 2)
        z = torch.relu(z + self.norm(self.pointwise(self.depthwise(z))))
        return self.head(self.down(z).flatten(1))


def train(module, epochs=EPOCHS, rate=4e-3):
    """A loop as any other: what `prepare_qat` returns is a module like this one."""
    optimizer = torch.optim.Adam(module.parameters(), rate)
    module.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(25):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[batch]), y[batch]).backward()
            optimizer.step()
    return module.eval()


@torch.no_grad()
def run(module):
    return module(x_test)


def accuracy(module):
    return 100 * float((run(module).argmax(1) == y_test).double().mean())


net = train(Net(), 2 * EPOCHS)
results = {"float": accuracy(net)}


# --- 3. Quantize it, and read the report --------------------------------------------------------------------
# The forward is followed by torch.fx: batch normalizations go into the convolutions before them, and every value that a
# device would hold gets one quantizer. The given module stays as it is.
quantized, report = qi.torch.quantize_model(net, "w8a8", x, progress=False)
print()
print(report)
results["w8a8"] = accuracy(quantized)
assert all(row.quantized for row in report.activations)
assert results["w8a8"] > results["float"] - 2


# --- 4. Few bits, rules, and training with them -------------------------------------------------------------
# Rules name modules by their paths; the first that fits decides. Here first and last layer keep 8 bits.
weights, values = qi.TensorSpec(bits=8, granularity="per_channel"), qi.TensorSpec(bits=8, method="uniform")
eight = {"weights": weights, "activations": values}
recipe = qi.recipes.get_recipe("w2a3").with_rules(qi.Rule("stem.0", **eight), qi.Rule("head", **eight))
with warnings.catch_warnings():
    warnings.simplefilter("ignore", qi.QuantizationWarning)  # of what two bits cost: that is the point here
    few, report = qi.torch.quantize_model(net, recipe, x, progress=False)
assert [report.find(f"{path}/weight")[0].bits for path in ("stem.0", "depthwise", "head")] == [8, 2, 8]
results["w2a3"] = accuracy(few)

qat = train(qi.torch.prepare_qat(net, recipe, x, method="lsq", progress=False), rate=2e-3)
trained = qi.torch.convert(qat)
results["w2a3, trained"] = accuracy(trained)
assert torch.equal(run(trained), run(qat))  # bit for bit
assert results["w2a3, trained"] > results["w2a3"] + 3


# --- 5. Save and load ---------------------------------------------------------------------------------------
# Tensors and a JSON text; frozen weights are packed codes. Nothing is pickled: the structure is your class, so the
# file is loaded into an instance of it, whatever its weights are. `torch.load(path, weights_only=True)` reads a .pt too.
print()
with tempfile.TemporaryDirectory() as folder:
    plain = Path(folder) / "float.pt"
    torch.save(net.state_dict(), plain)
    path = qi.torch.save_model(trained, Path(folder) / "net.pt")  # or "net.safetensors", with that package
    print(
        f"{path.name}: {path.stat().st_size:,} bytes, most of it which quantizer is where; in float: {plain.stat().st_size:,}"
    )
    loaded = qi.torch.load_model(path, Net())
assert torch.equal(run(loaded), run(trained))


# --- 6. A file for ONNX Runtime, with its proof -------------------------------------------------------------
# Integers with the module's own scales, channels first at the border. ONNX Runtime has run the file on the samples, and
# every output was what the twin, the same integer arithmetic computed by QI, had said.
with tempfile.TemporaryDirectory() as folder:
    proof = qi.export(quantized, Path(folder) / "net.onnx", samples=x[:64])
print(proof, "\n")
assert proof.exact


# --- 7. A trainable quantizer of your own -------------------------------------------------------------------
# The class of tutorial 05, word for word: nothing in it belongs to a framework. It trains how far the step has come
# from where it began, in percent, as it were.
@qi.mark_quantizer(
    list(qi.QuantizationTarget), [qi.QuantizationMethod.SYMMETRIC, qi.QuantizationMethod.UNIFORM], "ratio"
)
class RatioQuantizer(qi.BaseTrainableQuantizer):
    """The step is ``s = s0 |r|``: s0 is where it began, r trains."""

    def declare(self, shape, x=None):
        start, zero_point = self.initial(shape, x)
        ratio = qi.QuantizerVariable("ratio", np.ones_like(start), trainable=True)
        fixed = {"start": start}
        if self.spec.method is qi.QuantizationMethod.UNIFORM:
            fixed["zero_point"] = zero_point
        return [ratio, *(qi.QuantizerVariable(name, value) for name, value in fixed.items())]

    def scale_zero_point(self, variables):
        return positive(variables["start"] * variables["ratio"]), variables.get("zero_point")


own = train(qi.torch.prepare_qat(net, recipe, x, method="ratio", progress=False), rate=2e-3)
ratios = torch.cat([p.detach().flatten() for name, p in own.named_parameters() if name.endswith("ratio")])
print(f"steps ended at {ratios.min():.2f} to {ratios.max():.2f} times their start\n")
results["w2a3, own method"] = accuracy(own)
assert torch.equal(run(qi.torch.convert(own)), run(own))
assert results["w2a3, own method"] > results["w2a3"] + 3

for name, value in results.items():
    print(f"{name:17} {value:6.2f} %")
assert "keras" not in sys.modules
