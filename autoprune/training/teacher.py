"""Outputs of the dense model on the batches of a fine-tuning, kept for all fine-tunings on the same batches."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from autoprune import memory_limits


@dataclass
class TeacherMemory:
    """Outputs of one teacher on the batches of one fine-tuning, step by step.

    Fine-tunings with the same seed, number of samples and batch size draw the same augmented batches, for every model
    that they train: `schedule` is any value that identifies such a sequence, and a new one empties the memory. The
    inputs of a step may differ all the same, where a data set draws from a random state of its own: a checksum of the
    inputs decides. Outputs are kept while they take at most `memory_limits.TEACHER_BYTES`.
    """

    _schedule: object = None
    _outputs: list[Tensor] = field(default_factory=list)
    _checksums: list[int] = field(default_factory=list)
    _bytes: int = 0

    def recall(self, schedule: object, step: int, inputs: Sequence[Tensor]) -> Tensor | None:
        """Return the teacher's outputs on the inputs of that step, `None` when they are not known."""
        if schedule != self._schedule:
            self._schedule, self._outputs, self._checksums, self._bytes = schedule, [], [], 0
        if step >= len(self._outputs) or _checksum(inputs) != self._checksums[step]:
            return None
        return self._outputs[step]

    def keep(self, step: int, inputs: Sequence[Tensor], outputs: Tensor) -> bool:
        """Keep the outputs of the next step of the schedule last recalled; return whether there was room."""
        if step != len(self._outputs) or self._bytes + outputs.nbytes > memory_limits.TEACHER_BYTES:
            return False
        self._outputs.append(outputs)
        self._checksums.append(_checksum(inputs))
        self._bytes += outputs.nbytes
        return True


def _checksum(inputs: Sequence[Tensor]) -> int:
    """CRC-32 of shapes and contents: depends on the order of values, and takes about 0.3 ms for 1 MB."""
    checksum = 0
    for tensor in inputs:
        checksum = zlib.crc32(repr(tuple(tensor.shape)).encode(), checksum)
        checksum = zlib.crc32(tensor.detach().flatten().view(torch.uint8).numpy().data, checksum)
    return checksum
