"""The conformance kit: tests that every backend must pass, generated from its table.

    @pytest.mark.parametrize("case", conformance_cases(BACKEND), ids=str)
    def test_conformance(case: Case) -> None:
        try:
            case.check()
        except DeviceMissingError as missing:
            pytest.skip(missing.problem)

For each row, chain and mode it builds the smallest module and quantizes it with the backend's own quantizer. It checks
which row quantized it, that weights are integers, that the result is as close to the float result as the steps imply,
that the lowered module computes the same, and that the modules passed in were not changed. The kit needs no test
runner.
"""

from qspec_core.testing._cases import Case, conformance_cases
from qspec_core.testing._errors import ConformanceError, DeviceMissingError
from qspec_core.testing._samples import SAMPLES, ErrorRule, Integers, Operands, Sample, Samples

__all__ = [
    "SAMPLES",
    "Case",
    "ConformanceError",
    "DeviceMissingError",
    "ErrorRule",
    "Integers",
    "Operands",
    "Sample",
    "Samples",
    "conformance_cases",
]
