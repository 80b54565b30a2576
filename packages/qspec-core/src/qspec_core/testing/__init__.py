"""The conformance kit: the tests that every backend must pass, made from its table.

    @pytest.mark.parametrize("case", conformance_cases(BACKEND), ids=str)
    def test_conformance(case: Case) -> None:
        try:
            case.check()
        except DeviceMissingError as missing:
            pytest.skip(missing.problem)

For each row, chain and mode it builds the smallest module, quantizes it with the backend's own quantizer and checks:
which row covers it; that weights are integers; that the result is as close to float as the steps imply; that the
lowered module computes the same; that nothing given was changed. The kit itself needs no test runner.
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
