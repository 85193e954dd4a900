"""What an operation of Keras does to the grid of its input: the table behind the rules that keep a deployed graph integer."""

from __future__ import annotations

from typing import Any

from qi.keras.attention import BandSoftmax
from qi.keras.caps import ChannelCap
from qi.keras.fold import activation_name
from qi.keras.graph import Call
from qi.keras.hidden_masks import MaskedAs, Unmasked
from qi.recipes.plan import Role

__all__ = ["fuses_activation", "is_fusable_activation", "is_softmax", "known_range", "multiplies", "role_of"]


_KEEPS = frozenset(
    # layers
    "Reshape Flatten Permute RepeatVector ZeroPadding1D ZeroPadding2D ZeroPadding3D Cropping1D Cropping2D Cropping3D "
    "MaxPooling1D MaxPooling2D MaxPooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D "
    "GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D UpSampling1D UpSampling3D Dropout "
    "SpatialDropout1D SpatialDropout2D SpatialDropout3D AlphaDropout GaussianDropout GaussianNoise "
    "ActivityRegularization Identity Masking "
    # those that change images in training alone
    "AugMix RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast RandomElasticTransform "
    "RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHue RandomInvert RandomPerspective "
    "RandomPosterization RandomRotation RandomSaturation RandomSharpness RandomShear RandomTranslation RandomZoom "
    "Solarization "
    # keras.ops
    "Transpose Swapaxes Moveaxis Ravel Squeeze ExpandDims BroadcastTo Flip Fliplr Flipud Roll Repeat Tile GetItem Slice "
    "Split ArraySplit Hsplit Vsplit Dsplit Unstack Max Amax StopGradient DepthToSpace SpaceToDepth".split()
)
_SAME = frozenset(
    "AveragePooling1D AveragePooling2D AveragePooling3D AdaptiveAveragePooling1D AdaptiveAveragePooling2D "
    "AdaptiveAveragePooling3D Resizing".split()
)
_JOINS = frozenset("Concatenate Stack Hstack Vstack Dstack".split())
_CHOOSES = frozenset("Maximum Minimum".split())  # JOINS, where all that they choose from are tensors
_FIXED = {"softmax": (0.0, 1.0), "sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}
# Kernels of these take a clamp (ReLU, ReLU6) into themselves.
_TAKES_ACTIVATION = frozenset(
    "Dense EinsumDense Conv1D Conv2D Conv3D Conv1DTranspose Conv2DTranspose Conv3DTranspose DepthwiseConv1D "
    "DepthwiseConv2D SeparableConv1D SeparableConv2D BatchNormalization Add Subtract Multiply".split()
)


def _function_of(call: Call) -> str:
    """The activation function a call is, in lower case: of an Activation, Softmax or keras.ops call."""
    if call.builtin_kind == "Activation":
        return activation_name(call.op)
    if isinstance(call.op, BandSoftmax):
        return "softmax"
    return call.builtin_kind.lower()


def role_of(call: Call) -> Role:
    """The role of a call; a class of the user's own is OWN, whatever its name."""
    kind = call.builtin_kind
    if kind == "TimeDistributed" and type(call.op.layer).__module__.startswith("keras."):
        kind = type(call.op.layer).__name__
        return Role.KEEPS if kind in _KEEPS else Role.SAME if kind in _SAME else Role.OWN
    if kind == "Activation" and activation_name(call.op) == "linear":
        return Role.KEEPS
    if kind == "UpSampling2D":
        return Role.KEEPS if call.op.interpolation == "nearest" else Role.SAME
    if (kind in _KEEPS and len(call.inputs) == 1) or isinstance(call.op, (MaskedAs, Unmasked)):
        return Role.KEEPS
    if kind in _SAME or isinstance(call.op, ChannelCap):
        return Role.SAME
    if kind in _JOINS or (kind in _CHOOSES and len(call.inputs) > 1):
        return Role.JOINS
    return Role.FIXED if _function_of(call) in _FIXED else Role.OWN


def known_range(call: Call) -> tuple[float, float] | None:
    """The range that a FIXED operation's grid covers."""
    return _FIXED.get(_function_of(call))


def is_fusable_activation(call: Call) -> bool:
    """Whether a call is a clamp that the kernel before it can take over: ReLU or ReLU6."""
    if call.builtin_kind == "ReLU":
        op: Any = call.op
        plain = not op.negative_slope and not op.threshold
        return plain and op.max_value in (None, 6)
    return _function_of(call) in ("relu", "relu6")


def is_softmax(call: Call) -> bool:
    """Whether a call is a softmax: as a layer, as an activation or of `keras.ops`."""
    return _function_of(call) == "softmax"


def multiplies(call: Call) -> bool:
    """Whether a call is a product of two matrices neither of which is a weight."""
    return call.builtin_kind in ("Matmul", "Einsum", "Dot") and len(call.inputs) == 2


def fuses_activation(call: Call) -> bool:
    """Whether a call's kernel takes over a clamp that follows it."""
    return call.builtin_kind in _TAKES_ACTIVATION and activation_name(call.op) == "linear"
