"""Quantizers: they decide which points of a graph carry which spec."""

from qspec_core._quantizer._base import (
    Quantizer,
    annotate_input_qspec_map,
    annotate_output_qspec,
    get_module_name_filter,
    is_valid_annotation,
)
from qspec_core._quantizer._composable import ComposableQuantizer, OnConflict
from qspec_core._quantizer._config import (
    OperatorConfig,
    OperatorPatternType,
    QuantizationConfig,
    get_bias_qspec,
    get_input_act_qspec,
    get_output_act_qspec,
    get_weight_qspec,
)
from qspec_core._quantizer._embedding import EmbeddingQuantizer, get_embedding_operators_config
from qspec_core._quantizer._table import TableQuantizer

__all__ = [
    "ComposableQuantizer",
    "EmbeddingQuantizer",
    "OnConflict",
    "OperatorConfig",
    "OperatorPatternType",
    "QuantizationConfig",
    "Quantizer",
    "TableQuantizer",
    "annotate_input_qspec_map",
    "annotate_output_qspec",
    "get_bias_qspec",
    "get_embedding_operators_config",
    "get_input_act_qspec",
    "get_module_name_filter",
    "get_output_act_qspec",
    "get_weight_qspec",
    "is_valid_annotation",
]
