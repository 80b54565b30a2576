"""Histograms searched together against the search of each alone."""

from typing import Any

import pytest
import torch

from qspec_core.observers import HistogramObserver
from qspec_core.observers._histogram import searched_together

SCHEMES: dict[str, dict[str, Any]] = {  # keywords of the observer
    "uint8": {"dtype": torch.uint8},
    "int8 symmetric": {"dtype": torch.int8, "qscheme": torch.per_tensor_symmetric},
    "float8": {"dtype": torch.float8_e4m3fn},
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_observers_searched_together_give_the_parameters_that_each_gives_alone(scheme: str) -> None:
    observers = []
    for seed in range(12):
        observer = HistogramObserver(**SCHEMES[scheme])
        generator = torch.Generator().manual_seed(seed)
        for _ in range(3):
            x = torch.randn(700, generator=generator) * 2.0 ** (seed - 6)
            observer((x.relu(), x, x.clamp(-1, 1))[seed % 3])
        observers.append(observer)
    alone = [observer.calculate_qparams() for observer in observers]
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HistogramObserver, "_best_range", lambda observer: calls.append(observer))
        with searched_together([*observers, torch.nn.Identity(), HistogramObserver(), observers[0]]):
            together = [observer.calculate_qparams() for observer in observers]
    assert not calls
    assert [[part.item() for part in pair] for pair in together] == [[part.item() for part in pair] for pair in alone]
    observers[0](torch.full((5000,), 1000.0))
    assert observers[0].calculate_qparams()[0] > alone[0][0]  # nothing is kept afterwards
