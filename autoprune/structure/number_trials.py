"""Passes that tell how far a copy of a model gets with other numbers in its modules."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from autoprune.structure.attributes import Attribute, Key, Score, Values, set_values, values_of
from autoprune.structure.deadline import Deadline
from autoprune.structure.native_proof import Form, Pass, same_outputs
from autoprune.structure.proof import TOLERANCE

_TRIAL_SECONDS = 5.0
"""Processor time of the thread after which no more numbers of modules are tried."""


class Trials:
    """Passes of one copy of a model with different numbers in its modules, within a limit of time."""

    def __init__(
        self,
        form: Form,
        choices: Mapping[Key, Sequence[Mapping[Attribute, int]]],
        state: Mapping[str, Tensor],
        inputs: Sequence[Tensor],
        expected: Pass,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._form, self._state, self._inputs, self._expected = form, state, inputs, expected
        attributes = {attribute for options_of in choices.values() for option in options_of for attribute in option}
        self._dense = values_of(form.module, attributes)
        self._modules = len(list(form.module.modules()))
        self._done = 0
        self._deadline = Deadline(_TRIAL_SECONDS, "trying numbers", clock)
        for module in form.module.modules():
            module.register_forward_hook(self._count)

    def score(self, values: Values) -> Score:
        """Return the share of modules that run, and minus the difference of outputs; `(1, 0)` when these are equal."""
        if self._deadline.is_over:
            return -1.0, 0.0
        set_values(self._form.module, {**self._dense, **values})
        self._done = 0
        try:
            outputs = self._form.run(self._state, self._inputs, training=False, gradients=False)
        except Exception:  # a user's forward may raise anything
            return min(self._done, self._modules) / (self._modules + 1), -float("inf")
        difference = same_outputs(self._expected, outputs)
        return 1.0, 0.0 if difference <= TOLERANCE else -difference

    def _count(self, *_: object) -> None:
        self._done += 1
