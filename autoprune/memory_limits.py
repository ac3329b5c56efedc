"""Memory that autoprune may hold, in one place: whoever runs out of memory (or has plenty) changes these numbers.

Each limit is per process, so `workers` processes hold `workers` times as much. Values are bytes unless the name says
otherwise. The three `RECONSTRUCTION_...` limits decide how much data, or which layers, least squares sees, and
`REPEATED_BATCHES_BYTES` the order of batches: results depend on them. The others trade memory for time alone.
"""

from __future__ import annotations

MIB, GIB = 1 << 20, 1 << 30

ITERABLE_DATA_BYTES = 4 * GIB
"""Batches of an iterable without items by number are kept for the whole run. A larger one is refused: it would be
swapped or killed later, without saying why."""

RECONSTRUCTION_ACTIVATION_BYTES = 1 * GIB
"""All calibration examples pass through a model at once. Where 256 examples need more activations than this at the
model's peak, fewer are taken."""

RECONSTRUCTION_TARGET_BYTES = 512 * MIB
"""Outputs of the dense model that the regressions are fitted to, kept for all policies of a run. Where they need more,
each layer is fitted at fewer positions."""

RECONSTRUCTION_COLUMNS = 6_000
"""A layer with more input columns than this is not reconstructed: its second moment, `[columns, columns]` in float64,
would take 300 MB."""

PREFIX_BYTES = 512 * MIB
"""Activations of the dense model at the last node that a policy leaves unchanged. Where they need more, the whole model
runs again for each policy."""

TEACHER_BYTES = 256 * MIB
"""Outputs of the dense model on the batches of one fine-tuning, for the next trials on the same batches. Where they
need more, the dense model runs again on the rest."""

CHECK_STEP_BYTES = 512 * MIB
"""Tensors that a training step of `autoprune check`, and of a search's time estimate, may keep for its gradients. Where
the task's batch needs more, the step has fewer examples."""

REPEATED_BATCHES_BYTES = 256 * MIB
"""Batches that wait to be trained on again. Where 64 batches need more, they return sooner."""
