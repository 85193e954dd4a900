"""The public names for type checkers and editors, which can't follow the lazy table of `__init__.py`."""

from qi import (
    algorithms as algorithms,
    core as core,
    dispatch as dispatch,
    engine as engine,
    exporters as exporters,
    ir as ir,
    keras as keras,
    ledger as ledger,
    observers as observers,
    quantizers as quantizers,
    recipes as recipes,
    report as report,
    testing as testing,
    torch as torch,
)
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
from qi.engine import (
    BitWidth as BitWidth,
    DynamicRangeCalibrator as DynamicRangeCalibrator,
    QuantizationAwareTraining as QuantizationAwareTraining,
    QuantizationConfig as QuantizationConfig,
    QuantizationMode as QuantizationMode,
    QuantizationType as QuantizationType,
    Quantizer as Quantizer,
)
from qi.errors import (
    ConfigError as ConfigError,
    ContractError as ContractError,
    FileFormatError as FileFormatError,
    InputError as InputError,
    MissingDependencyError as MissingDependencyError,
    NotCalibratedError as NotCalibratedError,
    QiError as QiError,
    QuantizationWarning as QuantizationWarning,
    StrictError as StrictError,
    UnsupportedError as UnsupportedError,
)
from qi.exporters.deploy import (
    export as export,
)
from qi.exporters.import_ranges import (
    import_ranges as import_ranges,
)
from qi.exporters.report import (
    ExportReport as ExportReport,
)
from qi.exporters.verify import (
    Verification as Verification,
    verify as verify,
)
from qi.ir import (
    QGraph as QGraph,
)
from qi.keras import (
    BitWidthSchedule as BitWidthSchedule,
    FreezeBatchNorm as FreezeBatchNorm,
    FreezeRanges as FreezeRanges,
    KerasActivationQuantizationHolder as KerasActivationQuantizationHolder,
    KerasNodeQuantizationDispatcher as KerasNodeQuantizationDispatcher,
    KerasQuantizationWrapper as KerasQuantizationWrapper,
    QuantizationLogger as QuantizationLogger,
    SearchResult as SearchResult,
    StartQuantization as StartQuantization,
    calibrate as calibrate,
    convert as convert,
    inspect_model as inspect_model,
    load_model as load_model,
    prepare_qat as prepare_qat,
    quantize_model as quantize_model,
    save_model as save_model,
)
from qi.keras.emulate import emulate as emulate
from qi.keras.lower import lower as lower
from qi.keras.search import search as search
from qi.ledger import (
    QuantizationReport as QuantizationReport,
)
from qi.quantizers import (
    ActivationLutPOTInferableQuantizer as ActivationLutPOTInferableQuantizer,
    ActivationPOTInferableQuantizer as ActivationPOTInferableQuantizer,
    ActivationSymmetricInferableQuantizer as ActivationSymmetricInferableQuantizer,
    ActivationUniformInferableQuantizer as ActivationUniformInferableQuantizer,
    AdditiveNoiseQuantizer as AdditiveNoiseQuantizer,
    BaseInferableQuantizer as BaseInferableQuantizer,
    BaseQuantizer as BaseQuantizer,
    BaseQuantizerConfig as BaseQuantizerConfig,
    BaseTrainableQuantizer as BaseTrainableQuantizer,
    DoReFaActivationQuantizer as DoReFaActivationQuantizer,
    DoReFaWeightsQuantizer as DoReFaWeightsQuantizer,
    LearnedRangeQuantizer as LearnedRangeQuantizer,
    LSQPlusQuantizer as LSQPlusQuantizer,
    LSQQuantizer as LSQQuantizer,
    PACTQuantizer as PACTQuantizer,
    QuantizationMethod as QuantizationMethod,
    QuantizationTarget as QuantizationTarget,
    QuantizerVariable as QuantizerVariable,
    STEQuantizer as STEQuantizer,
    StochasticQuantizer as StochasticQuantizer,
    TQTQuantizer as TQTQuantizer,
    TrainableQuantizerActivationConfig as TrainableQuantizerActivationConfig,
    TrainableQuantizerWeightsConfig as TrainableQuantizerWeightsConfig,
    WeightsLUTPOTInferableQuantizer as WeightsLUTPOTInferableQuantizer,
    WeightsLUTSymmetricInferableQuantizer as WeightsLUTSymmetricInferableQuantizer,
    WeightsPOTInferableQuantizer as WeightsPOTInferableQuantizer,
    WeightsSymmetricInferableQuantizer as WeightsSymmetricInferableQuantizer,
    WeightsUniformInferableQuantizer as WeightsUniformInferableQuantizer,
    get_inferable_quantizer_class as get_inferable_quantizer_class,
    get_quantizer_class as get_quantizer_class,
    mark_quantizer as mark_quantizer,
    quantizer_classes as quantizer_classes,
    training_methods as training_methods,
)
from qi.recipes import (
    Recipe as Recipe,
    Rule as Rule,
    TensorSpec as TensorSpec,
)
from qi.torch import (
    PytorchActivationQuantizationHolder as PytorchActivationQuantizationHolder,
    PytorchNodeQuantizationDispatcher as PytorchNodeQuantizationDispatcher,
    PytorchQuantizationWrapper as PytorchQuantizationWrapper,
)
