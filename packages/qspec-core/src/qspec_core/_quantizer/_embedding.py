"""Quantize embedding tables, weights only, for any backend that reads `quantized_decomposed` operators."""

import torch
from torch import nn
from torch.nn import functional

from qspec_core._errors import SpecError
from qspec_core._quantizer._config import OperatorConfig, OperatorPatternType, QuantizationConfig
from qspec_core._quantizer._table import TableQuantizer
from qspec_core._spec import QuantizationSpec
from qspec_core._torch import OpOverload
from qspec_core.observers import PerChannelMinMaxObserver
from qspec_core.patterns import DELEGATED, Flow, Mode, Outputs, PatternTable, Row, weight

__all__ = ["EmbeddingQuantizer", "get_embedding_operators_config"]

aten = torch.ops.aten
_PATTERNS = (
    (nn.Embedding,),
    (functional.embedding,),
    (nn.EmbeddingBag,),
    (functional.embedding_bag,),
)
_MODES = frozenset({Mode.WEIGHT_ONLY})


def _row(name: str, anchor: OpOverload) -> Row:
    return Row(name, anchor, (weight("weight", ch_axis=0),), Flow.STARTS, DELEGATED, modes=_MODES)


_TABLE = PatternTable(
    rows=(
        _row("embedding", aten.embedding.default),
        _row("embedding_bag", aten.embedding_bag.padding_idx),
        _row("embedding_bag", aten.embedding_bag.default),
    ),
    outputs=Outputs.DEMAND,
)


def get_embedding_operators_config(bits: int = 8) -> OperatorConfig:
    """Configuration of embedding tables, with the operators that it applies to.

    The integers are unsigned; each row has a float scale and a float zero point.

    Args:
        bits: 8, or 4 (stored one to a byte in uint8, values 0..15).
    Raises: SpecError: `bits` is neither 8 nor 4.
    """
    if bits not in (4, 8):
        raise SpecError(
            "embedding tables are quantized to 4 or 8 bits",
            found=f"bits={bits}",
            expected="4 or 8",
            remedy="choose one of the two",
        )
    spec = QuantizationSpec(
        torch.uint8,
        PerChannelMinMaxObserver.with_args(eps=2**-12),
        quant_min=None if bits == 8 else 0,
        quant_max=None if bits == 8 else 15,
        qscheme=torch.per_channel_affine_float_qparams,
        ch_axis=0,
    )
    return OperatorConfig(QuantizationConfig(None, None, spec, None), [list(pattern) for pattern in _PATTERNS])


class EmbeddingQuantizer(TableQuantizer):
    """Quantizes the tables of embedding and embedding_bag. Selectors exclude single tables, or change their bits.

    Args:
        bits: 8 or 4.
    """

    def __init__(self, bits: int = 8) -> None:
        super().__init__(_TABLE)
        self.set_global(get_embedding_operators_config(bits).config)

    @classmethod
    def get_supported_operators(cls) -> list[OperatorConfig]:
        """Configurations, each with the operators that it applies to."""
        return [get_embedding_operators_config(bits) for bits in (8, 4)]

    @classmethod
    def get_supported_quantization_configs(cls) -> list[QuantizationConfig]:
        """Configurations for 8 and for 4 bits."""
        return [config for config, _ in cls.get_supported_operators()]

    @classmethod
    def get_supported_operator_for_quantization_config(
        cls, quantization_config: QuantizationConfig
    ) -> list[OperatorPatternType]:
        """The operators that a configuration applies to; empty for a configuration of another quantizer."""
        found = (operators for config, operators in cls.get_supported_operators() if config == quantization_config)
        return next(found, [])
