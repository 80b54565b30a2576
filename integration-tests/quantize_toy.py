"""Program of the isolation tests, run in separate environments: quantize a small model and print the result as JSON.

Arguments: the backend, then names of modules that must not be importable.
"""

import importlib.util
import json
import sys

import torch

import qspec_core


def model() -> torch.nn.Module:
    """Convolutions, a residual add, pooling and a linear layer."""
    torch.manual_seed(0)

    class Toy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Conv2d(3, 8, 3, padding=1)
            self.second = torch.nn.Conv2d(8, 8, 3, padding=1)
            self.last = torch.nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.first(x))
            x = torch.relu(x + self.second(x))
            return self.last(x.mean((2, 3)))  # type: ignore[no-any-return]  # modules are called untyped

    return Toy().eval()


def main(backend: str, absent: list[str]) -> None:
    """Quantize for one backend, and print the agreement with float and the modules that can be imported."""
    torch.set_num_threads(1)
    toy = model()
    batches = [(torch.randn(2, 3, 16, 16),) for _ in range(4)]
    result = qspec_core.quantize(toy, batches[0], calibration=batches, backend=backend, target="any")
    with torch.no_grad():
        expected = toy(*batches[0])
        noise = result.lowered(*batches[0]) - expected
    found = {
        "importable": [name for name in absent if importlib.util.find_spec(name) is not None],
        "sqnr": float(10 * torch.log10(expected.square().sum() / noise.square().sum())),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
