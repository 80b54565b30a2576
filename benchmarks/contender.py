"""What a contender of `x86.py` is once it is built, and what all of them are built from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from examples.pictures import calibration_crops, evaluation_crops, lite0
from examples.timing import has_vnni
from torch import Tensor, nn

__all__ = ["Built", "Model", "Setting"]

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Built:
    """A contender that is ready to run.

    Args:
        run: takes float32 (1, 3, 224, 224), returns logits (1, 1000).
        layers: "n of m" convolutions and linear layers quantized; empty where unknown.
        size: of the deployable file, in bytes; None where there is none.
        converted: the quantized program as plain torch computes it; None where there is none.
        outside: operators left outside the delegate; None where there is no delegate.
    """

    run: Model
    layers: str = ""
    size: int | None = None
    converted: Model | None = None
    outside: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """What every contender is given.

    Args:
        folder: shared by all of them: the ONNX file is written once.
        threads: how many each may use.
    """

    folder: Path
    threads: int
    vnni: bool = field(default_factory=has_vnni)

    @cached_property
    def model(self) -> nn.Module:
        """The float model."""
        return lite0()

    @cached_property
    def evaluation(self) -> list[Tensor]:
        """Crops that nothing was calibrated on."""
        return evaluation_crops()

    @cached_property
    def calibration(self) -> list[Tensor]:
        """Crops to calibrate with."""
        return calibration_crops()

    @property
    def example(self) -> tuple[Tensor]:
        """Arguments of one call."""
        return (self.calibration[0],)

    def onnx(self) -> Path:
        """The float model as an ONNX file."""
        path = self.folder / "lite0.onnx"
        if not path.exists():
            program = torch.onnx.export(self.model, self.example, input_names=["x"], dynamo=True, verbose=False)
            if program is None:
                raise RuntimeError("torch.onnx.export returned nothing")
            program.save(path)
        return path
