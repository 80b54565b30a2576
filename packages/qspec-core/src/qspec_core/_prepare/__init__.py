"""Preparation: from an exported graph to one with observers."""

from qspec_core._prepare._pt2e import prepare_pt2e

__all__ = ["prepare_pt2e"]
