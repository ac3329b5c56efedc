"""What the dense model says about the batches of a fine-tuning, kept for all those that see the same batches."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

_MOST_BYTES = 1 << 28


@dataclass
class TeacherMemory:
    """Outputs of one teacher on the batches of one fine-tuning, step by step.

    Fine-tunings with the same seed, number of samples and batch size draw the same augmented batches, whatever model
    they train. `fits` says which one it is; another one starts anew. Outputs are kept while they take at most 256 MB.
    """

    _fits: object = None
    _outputs: list[Tensor] = field(default_factory=list)
    _bytes: int = 0

    def recall(self, fits: object, step: int) -> Tensor | None:
        """The teacher's outputs in that step, `None` when they are not known."""
        if fits != self._fits:
            self._fits, self._outputs, self._bytes = fits, [], 0
        return self._outputs[step] if step < len(self._outputs) else None

    def keep(self, step: int, outputs: Tensor) -> None:
        """Remember the outputs of the next step of the fine-tuning that was asked for last."""
        if step == len(self._outputs) and self._bytes + outputs.nbytes <= _MOST_BYTES:
            self._outputs.append(outputs)
            self._bytes += outputs.nbytes
