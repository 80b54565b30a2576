"""Find the quantization points that share one observer: the connected components of a constraint graph.

The constraints are references (`SharedQuantizationSpec`) and agreement on one tensor. The order of nodes and
annotations does not decide what shares; see `docs/architecture.md`.
"""

from qspec_core._sharing._resolution import SharingGroup, SharingResolution, resolve_sharing

__all__ = ["SharingGroup", "SharingResolution", "resolve_sharing"]
