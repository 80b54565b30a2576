"""A built contender of `x86.py`, and the inputs that all contenders are built from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from examples.pictures import calibration_crops, evaluation_crops
from examples.timing import has_vnni
from flow_models import TOKENS, float_model
from profiles import Profile
from torch import Tensor, nn

__all__ = ["Built", "Model", "Setting"]

Model = Callable[..., Tensor]


@dataclass(frozen=True)
class Built:
    """A contender that is ready to run.

    Args:
        run: takes one input of the model, returns its output.
        layers: "n of m" convolutions and linear layers quantized; empty where unknown.
        size: of the deployable file, in bytes; None where there is none.
        converted: the quantized program as plain torch computes it; None where there is none.
        outside: operators left outside the delegate; None where there is no delegate.
        notes: lines to print below the table.
        profile: measures its operators one by one; None if the runtime cannot.
    """

    run: Model
    layers: str = ""
    size: int | None = None
    converted: Model | None = None
    outside: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    profile: Profile | None = None


@dataclass(frozen=True)
class Setting:
    """Inputs and limits that every contender gets.

    Args:
        folder: shared by all contenders, so that the ONNX file is written once.
        threads: number of threads that each may use.
        name: of the model, as `flow_models` knows it.
    """

    folder: Path
    threads: int
    name: str = "lite0"
    vnni: bool = field(default_factory=has_vnni)

    @cached_property
    def model(self) -> nn.Module:
        """The float model."""
        return float_model(self.name)[0]

    @property
    def is_trained(self) -> bool:
        """Whether its weights are trained, so that its first choice among classes means something."""
        return self.name == "lite0"

    @cached_property
    def evaluation(self) -> list[Tensor]:
        """Inputs not used to calibrate: crops of pictures, or noise for a model with random weights."""
        return evaluation_crops() if self.is_trained else self._noise(16, seed=2)

    @cached_property
    def calibration(self) -> list[Tensor]:
        """Inputs to calibrate with."""
        return calibration_crops() if self.is_trained else self._noise(8, seed=1)

    def _noise(self, count: int, seed: int) -> list[Tensor]:
        like = float_model(self.name)[1][0]
        torch.manual_seed(seed)
        if like.is_floating_point():
            return [torch.randn_like(like) for _ in range(count)]
        return [torch.randint_like(like, TOKENS) for _ in range(count)]

    @property
    def example(self) -> tuple[Tensor]:
        """Arguments of one call."""
        return (self.calibration[0],)

    def onnx(self) -> Path:
        """The float model as an ONNX file."""
        path = self.folder / "float.onnx"
        if not path.exists():
            program = torch.onnx.export(self.model, self.example, input_names=["x"], dynamo=True, verbose=False)
            if program is None:
                raise RuntimeError("torch.onnx.export returned nothing")
            program.save(path)
        return path
