"""The public names for type checkers and editors, which can't follow the lazy table of `__init__.py`."""

from qi._version import __version__ as __version__
from qi.core import (
    IntGrid as IntGrid,
    LutGrid as LutGrid,
    PerChannel as PerChannel,
    PerGroup as PerGroup,
    PerTensor as PerTensor,
    QParams as QParams,
    QTensor as QTensor,
    SymmetricRule as SymmetricRule,
)
from qi.dispatch import (
    NodeQuantizationDispatcher as NodeQuantizationDispatcher,
)
from qi.errors import (
    ConfigError as ConfigError,
    FileFormatError as FileFormatError,
    InputError as InputError,
    MissingDependencyError as MissingDependencyError,
    NotCalibratedError as NotCalibratedError,
    QiError as QiError,
    QuantizationWarning as QuantizationWarning,
    StrictError as StrictError,
    UnsupportedError as UnsupportedError,
)
from qi.keras import (
    KerasActivationQuantizationHolder as KerasActivationQuantizationHolder,
    KerasNodeQuantizationDispatcher as KerasNodeQuantizationDispatcher,
    KerasQuantizationWrapper as KerasQuantizationWrapper,
    calibrate as calibrate,
    convert as convert,
    inspect_model as inspect_model,
    load_model as load_model,
    prepare_qat as prepare_qat,
    quantize_model as quantize_model,
    save_model as save_model,
)
from qi.ledger import (
    QuantizationReport as QuantizationReport,
)
from qi.quantizers import (
    ActivationLutPOTInferableQuantizer as ActivationLutPOTInferableQuantizer,
    ActivationPOTInferableQuantizer as ActivationPOTInferableQuantizer,
    ActivationSymmetricInferableQuantizer as ActivationSymmetricInferableQuantizer,
    ActivationUniformInferableQuantizer as ActivationUniformInferableQuantizer,
    BaseInferableQuantizer as BaseInferableQuantizer,
    QuantizationMethod as QuantizationMethod,
    QuantizationTarget as QuantizationTarget,
    WeightsLUTPOTInferableQuantizer as WeightsLUTPOTInferableQuantizer,
    WeightsLUTSymmetricInferableQuantizer as WeightsLUTSymmetricInferableQuantizer,
    WeightsPOTInferableQuantizer as WeightsPOTInferableQuantizer,
    WeightsSymmetricInferableQuantizer as WeightsSymmetricInferableQuantizer,
    WeightsUniformInferableQuantizer as WeightsUniformInferableQuantizer,
    get_inferable_quantizer_class as get_inferable_quantizer_class,
    mark_quantizer as mark_quantizer,
)
from qi.recipes import (
    Recipe as Recipe,
    Rule as Rule,
    TensorSpec as TensorSpec,
)
