"""The dense model's values that pruned models are fitted to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx

from autoprune.recovery.consumers import Consumer
from autoprune.recovery.recurrent import Direction, hidden_state
from autoprune.recovery.windows import input_windows, output_positions
from autoprune.structure import EvaluationGraph


class DenseRecorder(fx.Interpreter):
    """Runs the dense model and keeps what the regressions need of it, at sampled positions and by node.

    - `targets`: outputs `[rows, O]` of each consumer.
    - `rows`: input windows `[rows, D]` of consumers that several nodes share.
    - `steps`: inputs and hidden states `[rows, C + H]` of each direction of a recurrent layer.
    """

    def __init__(
        self,
        module: EvaluationGraph,
        consumers: Mapping[str, Consumer],
        recurrent: Mapping[str, tuple[Direction, ...]],
        sample: Callable[[Tensor, str], Tensor],
    ) -> None:
        super().__init__(module)
        self._consumers = consumers
        self._recurrent = recurrent
        self._sample = sample
        self.targets: dict[str, Tensor] = {}
        self.rows: dict[str, Tensor] = {}
        self.steps: dict[str, tuple[Tensor, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and keep what it reads and returns."""
        name, consumer = n.name, self._consumers.get(n.name)
        if consumer is not None and consumer.is_shared:
            args, _ = self.fetch_args_kwargs_from_env(n)
            self.rows[name] = self._sample(input_windows(n, args), name)
        output = super().run_node(n)
        if consumer is not None:
            self.targets[name] = self._sample(output_positions(n, output), name)
        if name in self._recurrent:
            args, _ = self.fetch_args_kwargs_from_env(n)
            state = hidden_state(args)
            self.steps[name] = tuple(
                self._sample(d.columns(args[0], state, output[0]), name) for d in self._recurrent[name]
            )
        return output
