"""Quantization-aware training: the training form of a graph, and its way back to the form that convert takes."""

from qspec_core._qat._fold import fold_training_form
from qspec_core._qat._pt2e import prepare_qat_pt2e
from qspec_core._qat._schedule import QATSchedule

__all__ = ["QATSchedule", "fold_training_form", "prepare_qat_pt2e"]
