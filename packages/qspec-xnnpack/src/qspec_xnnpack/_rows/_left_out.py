"""Forms that ExecuTorch's quantizer or its partitioner (1.5.1) knows and no row has, each with why."""

__all__ = ["LEFT_OUT"]

LEFT_OUT: dict[str, str] = {
    "relu behind a product, hardtanh behind a sum": "the delegate fuses neither; it takes both operators and computes "
    "them in float. They are two rows",
    "three-dimensional convolutions": "the delegate has none: a quantize and a dequantize around a float kernel",
    "inputs and outputs of a GRU": "ExecuTorch registers that annotator and never calls it; inside, products are float",
    "mean of everything, cat of one tensor twice": "the partitioner refuses them",
    "adaptive average pools to more than one pixel": "they become an average pool, which has a float kernel alone",
    "copies to another dtype or memory format": "the delegate converts no dtype, and a program of this package has one "
    "memory format from end to end",
    "weights alone": "the delegate has no kernel that reads integer weights and float activations",
}
