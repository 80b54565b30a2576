"""Which quantization points share one observer: groups are the connected components of a constraint graph.

The constraints are references (`SharedQuantizationSpec`) and agreement on one tensor, so that no order of nodes or
annotations decides who shares; see `docs/architecture.md`.
"""

from qspec_core._sharing._resolution import SharingGroup, SharingResolution, resolve_sharing

__all__ = ["SharingGroup", "SharingResolution", "resolve_sharing"]
