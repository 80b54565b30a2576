"""Forms that ExecuTorch's quantizer or partitioner (1.5.1) has and no row has, each with the reason."""

__all__ = ["LEFT_OUT"]

LEFT_OUT: dict[str, str] = {
    "relu after a product, hardtanh after a sum": "the delegate fuses neither: it would take both operators and "
    "compute them in float; they are two rows",
    "three-dimensional convolutions": "the delegate has no kernel; ExecuTorch's form is a quantize and a dequantize "
    "around a float kernel",
    "inputs and outputs of a GRU": "ExecuTorch registers an annotator for it and never calls it; the products inside "
    "are float",
    "mean over all dimensions, cat of one tensor twice": "the partitioner refuses them",
    "adaptive average pools to more than one pixel": "they become an average pool, which has a float kernel only",
    "copies to another dtype or memory format": "the delegate converts no dtype, and the programs of this package keep "
    "one memory format",
    "weights only": "the delegate has no kernel for integer weights and float activations",
}
