"""When, in training, values are rounded, and batch norms and ranges are frozen."""

from typing import Any

from torch import nn

from qspec_core._errors import SpecError
from qspec_core._train_eval import freeze_bn_stats, has_batch_norms, update_bn_stats
from qspec_core.fake_quantize import (
    FakeQuantizeBase,
    LearnableFakeQuantize,
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_observer,
    enable_range_learning,
)

__all__ = ["QATSchedule"]


class QATSchedule:
    """Switches rounding, observers and batch norms of a prepared module by the number of training steps.

    Call `step()` after each step of the optimizer. `state_dict` and `load_state_dict` resume it with the training.

    Args:
        module: from `prepare_qat_pt2e`, or a module that holds one, such as `DistributedDataParallel`.
        quantize_at: step from which values are rounded. Before it, observers only find ranges.
        freeze_batch_norms_at: step from which batch norms use their running statistics; None for never.
        freeze_observers_at: step from which ranges stay; None for never.
        learn_ranges_at: step from which learnable fake-quantizes train scale and zero point; None for never.
    Raises: SpecError: a step is negative, or the module has nothing that it would switch.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        quantize_at: int = 0,
        freeze_batch_norms_at: int | None = None,
        freeze_observers_at: int | None = None,
        learn_ranges_at: int | None = None,
    ) -> None:
        self._module = module
        self._steps = {
            "quantize_at": quantize_at,
            "freeze_batch_norms_at": freeze_batch_norms_at,
            "freeze_observers_at": freeze_observers_at,
            "learn_ranges_at": learn_ranges_at,
        }
        self._require_something_to_switch()
        self.steps_done = 0
        self._apply()

    def step(self) -> None:
        """Count one training step, and switch what is due."""
        self.steps_done += 1
        if self.steps_done in self._steps.values():
            self._apply()

    def state_dict(self) -> dict[str, Any]:  # as optimizers and schedulers have
        """The number of steps done."""
        return {"steps_done": self.steps_done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # as above
        """Go to the number of steps of a saved state, and switch everything as it was there."""
        self.steps_done = int(state_dict["steps_done"])
        self._apply()

    def _is_due(self, name: str) -> bool:
        at = self._steps[name]
        return at is not None and self.steps_done >= at

    def _apply(self) -> None:
        """Switch everything as the number of steps says."""
        self._module.apply(enable_fake_quant if self._is_due("quantize_at") else disable_fake_quant)
        self._module.apply(freeze_bn_stats if self._is_due("freeze_batch_norms_at") else update_bn_stats)
        self._module.apply(disable_observer if self._is_due("freeze_observers_at") else enable_observer)
        if self._is_due("learn_ranges_at"):
            self._module.apply(enable_range_learning)

    def _require_something_to_switch(self) -> None:
        parts = list(self._module.modules())
        present = {
            "quantize_at": any(isinstance(part, FakeQuantizeBase) for part in parts),
            "freeze_batch_norms_at": any(map(has_batch_norms, parts)),
            "freeze_observers_at": True,
            "learn_ranges_at": any(isinstance(part, LearnableFakeQuantize) for part in parts),
        }
        for name, at in self._steps.items():
            if at is None:
                continue
            if at < 0 or not present[name]:
                raise SpecError(
                    f"{name} is negative" if at < 0 else f"the module has nothing that {name} switches",
                    found=f"{name}={at}",
                    expected="a step from 0 on" if at < 0 else _EXPECTED[name],
                    remedy=f"leave {name} out, or give it a module from prepare_qat_pt2e",
                )


_EXPECTED = {
    "quantize_at": "fake-quantizes",
    "freeze_batch_norms_at": "batch norms in an exported graph",
    "learn_ranges_at": "fake-quantizes of a configuration with learnable=True",
}
"""The part that a module must have for each switch."""
