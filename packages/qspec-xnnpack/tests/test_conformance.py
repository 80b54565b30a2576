"""The conformance kit on the XNNPACK table, lowered to programs that ExecuTorch's runtime executes."""

from qspec_core.testing import conformance_test
from qspec_xnnpack import BACKEND

test_conformance = conformance_test(BACKEND)
