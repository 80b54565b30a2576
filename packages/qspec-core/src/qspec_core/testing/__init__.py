"""The conformance kit: tests that every backend must pass, generated from its table.

    from qspec_core.testing import conformance_test

    test_conformance = conformance_test("toy")

These lines in a test folder run the kit on an installed backend; `pytest --pyargs qspec_core.testing --backend toy`
does the same. For each row, chain and mode the kit builds the smallest module and quantizes it with the backend's own
quantizer. It checks which row quantized it, that weights are integers, that the result is as close to the float result
as the steps imply, that the lowered module computes the same in kernels that take integers, and that the modules passed
in were not changed. A packaged file is loaded again and compared.

`training_cases` does the same after a few steps of quantization-aware training.

`scorecard` runs the same cases and small whole models, and counts. Only `conformance_test` needs pytest.
"""

from qspec_core.testing._architectures import ARCHITECTURES, Architecture
from qspec_core.testing._cases import Case, ConvertedRow, conformance_cases, converted_rows
from qspec_core.testing._errors import CheckName, ConformanceError, DeviceMissingError
from qspec_core.testing._kit import Kit
from qspec_core.testing._pytest import check_case, conformance_test
from qspec_core.testing._samples import SAMPLES, ErrorRule, Integers, Operands, Sample, Samples
from qspec_core.testing._scorecard import ArchitectureScore, RowScore, Scorecard, scorecard
from qspec_core.testing._training import training_cases

__all__ = [
    "ARCHITECTURES",
    "SAMPLES",
    "Architecture",
    "ArchitectureScore",
    "Case",
    "CheckName",
    "ConformanceError",
    "ConvertedRow",
    "DeviceMissingError",
    "ErrorRule",
    "Integers",
    "Kit",
    "Operands",
    "RowScore",
    "Sample",
    "Samples",
    "Scorecard",
    "check_case",
    "conformance_cases",
    "conformance_test",
    "converted_rows",
    "scorecard",
    "training_cases",
]
