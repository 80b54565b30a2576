"""Observers: modules that look at the values passing through them and find how to quantize them."""

from qspec_core.observers._affine import (
    AffineQuantizedMinMaxObserver,
    AffineQuantizedMovingAverageMinMaxObserver,
    AffineQuantizedObserverBase,
    AffineQuantizedPlaceholderObserver,
)
from qspec_core.observers._base import (
    ObserverBase,
    ObserverNeverRanWarning,
    UniformQuantizationObserverBase,
)
from qspec_core.observers._constructor import (
    PartialWrapper,
    accepted_keywords,
    build_observer,
)
from qspec_core.observers._defaults import (
    default_affine_fixed_qparams_observer,
    default_debug_observer,
    default_dynamic_quant_observer,
    default_fixed_qparams_range_0to1_observer,
    default_fixed_qparams_range_neg1to1_observer,
    default_float_qparams_observer,
    default_float_qparams_observer_4bit,
    default_histogram_observer,
    default_observer,
    default_per_channel_weight_observer,
    default_placeholder_observer,
    default_reuse_input_observer,
    default_symmetric_fixed_qparams_observer,
    default_weight_observer,
    per_channel_weight_observer_range_neg_127_to_127,
    weight_observer_range_neg_127_to_127,
)
from qspec_core.observers._form import (
    ConvertedForm,
    Step,
)
from qspec_core.observers._granularity import (
    Granularity,
    MappingType,
    PerAxis,
    PerBlock,
    PerGroup,
    PerRow,
    PerTensor,
    PerToken,
    TorchAODType,
    ZeroPointDomain,
    get_block_size,
)
from qspec_core.observers._histogram import (
    HistogramObserver,
)
from qspec_core.observers._minmax import (
    MinMaxObserver,
    MovingAverageMinMaxObserver,
)
from qspec_core.observers._per_channel import (
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)
from qspec_core.observers._per_channel_mse import (
    PerChannelMSEObserver,
)
from qspec_core.observers._plain import (
    DerivedObserverOrFakeQuantize,
    FixedQParamsObserver,
    NoopObserver,
    PlaceholderObserver,
    RecordingObserver,
    ReuseInputObserver,
)
from qspec_core.observers._state import (
    get_observer_state_dict,
    load_observer_state_dict,
)
from qspec_core.observers._sync import (
    share_ranges,
    sync_observers,
)

__all__ = [
    "AffineQuantizedMinMaxObserver",
    "AffineQuantizedMovingAverageMinMaxObserver",
    "AffineQuantizedObserverBase",
    "AffineQuantizedPlaceholderObserver",
    "ConvertedForm",
    "DerivedObserverOrFakeQuantize",
    "FixedQParamsObserver",
    "Granularity",
    "HistogramObserver",
    "MappingType",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
    "NoopObserver",
    "ObserverBase",
    "ObserverNeverRanWarning",
    "PartialWrapper",
    "PerAxis",
    "PerBlock",
    "PerChannelMSEObserver",
    "PerChannelMinMaxObserver",
    "PerGroup",
    "PerRow",
    "PerTensor",
    "PerToken",
    "PlaceholderObserver",
    "RecordingObserver",
    "ReuseInputObserver",
    "Step",
    "TorchAODType",
    "UniformQuantizationObserverBase",
    "ZeroPointDomain",
    "accepted_keywords",
    "build_observer",
    "default_affine_fixed_qparams_observer",
    "default_debug_observer",
    "default_dynamic_quant_observer",
    "default_fixed_qparams_range_0to1_observer",
    "default_fixed_qparams_range_neg1to1_observer",
    "default_float_qparams_observer",
    "default_float_qparams_observer_4bit",
    "default_histogram_observer",
    "default_observer",
    "default_per_channel_weight_observer",
    "default_placeholder_observer",
    "default_reuse_input_observer",
    "default_symmetric_fixed_qparams_observer",
    "default_weight_observer",
    "get_block_size",
    "get_observer_state_dict",
    "load_observer_state_dict",
    "per_channel_weight_observer_range_neg_127_to_127",
    "share_ranges",
    "sync_observers",
    "weight_observer_range_neg_127_to_127",
]
