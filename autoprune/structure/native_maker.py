"""Copies of the user's own module at pruned sizes, and the proof that they compute what the graph module computes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.errors import StructureError
from autoprune.model.acceptance import unwrap
from autoprune.model.adapters import own_class
from autoprune.records import Policy
from autoprune.structure.attributes import Sizes, Values, follow, is_copied, options, set_values
from autoprune.structure.deadline import Deadline, OutOfTimeError
from autoprune.structure.input_sizes import at_second
from autoprune.structure.module import GraphModel
from autoprune.structure.narrow_attention import follow_heads
from autoprune.structure.native_proof import (
    Form,
    Pass,
    custom_functions,
    differing_gradients,
    random_state,
    same_outputs,
)
from autoprune.structure.number_trials import Trials
from autoprune.structure.own_classes import groups_of, rebuilt
from autoprune.structure.pretrained import STALE, configured, has_configuration
from autoprune.structure.proof import LARGE_BATCH, TOLERANCE, random_like
from autoprune.structure.shrink import slice_tensors
from autoprune.structure.structure import Structure
from autoprune.structure.traced_copy import note_of, parts_of_wrong
from autoprune.structure.traced_modules import trace

_LARGE = 20_000
"""Elements of an example above which gradients are compared in training alone."""
_SECOND_BATCH = 3
_DEEPEST_LEVEL = 3
_SECONDS = 60.0
"""Processor time for the search of a copy that computes what the graph module computes; then that one is taken."""


class Maker:
    """Makes and proves the native form of one pruned model."""

    def __init__(self, structure: Structure, pruned: GraphModel, clock: Callable[[], float] = time.thread_time) -> None:
        assert pruned.pruned_to is not None
        self.structure, self.pruned = structure, pruned
        cut = pruned.pruned_to
        policy = Policy(space_id="", widths=cut.widths)
        keep = {name: np.asarray(kept) for name, kept in cut.kept.items()} or None
        self.masks, self.removed = structure.masks(policy, keep), structure.removed(policy)
        self.state_of_dense = random_state(structure.model, torch.Generator().manual_seed(0))
        dead = structure.branches.dead_tensors(self.removed)
        with torch.no_grad():
            self.state = slice_tensors(
                self.state_of_dense, self.masks, structure.canonical, dead, structure.lookup_sites
            )
        self.sizes = Sizes.between(structure.model, pruned, structure.units, cut.widths)
        self.graph = Form(pruned)
        self.groups = groups_of(pruned)
        self.notes: tuple[str, ...] = ()
        self._clock = clock
        self._deadline = Deadline(_SECONDS, "finding a form of the model's own classes that is right", clock)

    # The copy.

    def own(self, given: nn.Module | None) -> nn.Module:
        """Return the proven copy in the class of `given`, or in the user's own class."""
        copied = self.copy_with_equal_outputs()
        self._prove(copied)
        if given is None or type(unwrap(given)) is not type(copied):
            copied = own_class(copied)
        assert self.pruned.pruned_to is not None
        pruned_to = replace(self.pruned.pruned_to, form="native", notes=self.notes)
        copied.__dict__["pruned_to"] = pruned_to  # for `save`
        return copied

    def copy_with_equal_outputs(self) -> nn.Module:
        """Return a copy with equal outputs in evaluation mode, whose numbers follow the sizes as that needs."""
        failure: StructureError | None = None
        for level in range(_DEEPEST_LEVEL + 1 if self.removed else 1):
            for values in self._values(level):
                self._deadline.check()
                try:
                    candidate = self._copy(level, values)
                    self._require_equal_outputs(candidate)
                    return candidate.train(self.pruned.training)
                except StructureError as error:
                    failure = failure or error
        assert failure is not None
        return self._with_traced_parts(failure)

    def _with_traced_parts(self, failure: StructureError) -> nn.Module:
        """Return a copy in which modules whose own forward is wrong at pruned sizes compute a part of the graph.

        Raises:
            StructureError: `failure`, where that is wrong, too.
        """
        of_model = Form(self._copy(0))
        try:
            parts = parts_of_wrong(
                self.structure, of_model, self.graph, self.state_of_dense, self.state, self.inputs, self._deadline
            )
            candidate = self._copy(0)
            for path, of_modes in parts.items():
                trace(candidate.get_submodule(path), of_modes)
            self._require_equal_outputs(candidate)
        except OutOfTimeError:
            raise
        except StructureError as error:
            raise failure from error
        self.notes = (*self.notes, note_of(self.structure.model, parts))
        return candidate.train(self.pruned.training)

    def _copy(self, level: int, values: Values | None = None) -> nn.Module:
        model = self.structure.model
        copied = rebuilt(model, self.pruned, self.structure.example_inputs, level, self.groups)
        follow_heads(copied, self.masks, self.structure.canonical)
        set_values(copied, {a: value for a, value in (values or {}).items() if is_copied(a, model, copied)})
        return copied

    def _values(self, level: int) -> Iterator[Values]:
        """Yield the numbers that are tried: those of the configuration, none, those that are found by a climb."""
        model = own_class(self.structure.model)
        if has_configuration(model) and not self.removed:
            of_config = configured(model, self.pruned, self.sizes)
            self.notes = () if of_config is not None else (STALE,)
            if of_config is not None:
                yield of_config
        elif has_configuration(model):
            self.notes = (STALE,)
        yield {}
        try:
            copied, expected = self._copy(level), self._expected
        except StructureError:
            return  # nothing to try numbers in, or nothing to compare with
        choices = options(self.structure.model, self.sizes, copied)
        if choices:
            trials = Trials(Form(copied), choices, self.state, self.inputs[0], expected, self._clock)
            yield follow(choices, trials.score)

    # The proof.

    @cached_property
    def inputs(self) -> list[Sequence[Tensor]]:
        """Random inputs of two sizes, the smaller one first: another batch, and another size where one is free."""
        generator = torch.Generator().manual_seed(0)
        examples = self.structure.example_inputs
        first = [random_like(x, LARGE_BATCH, generator) for x in examples]
        second = [random_like(x, _SECOND_BATCH, generator) for x in self._at_second()]
        return [second, first] if sum(x.numel() for x in second) < sum(x.numel() for x in first) else [first, second]

    def _at_second(self) -> Sequence[Tensor]:
        examples = self.structure.example_inputs
        return at_second(self.pruned.sizes, examples) or examples

    @cached_property
    def _is_large(self) -> bool:
        return any(x.dim() and x[0].numel() > _LARGE for x in self.structure.example_inputs)

    @cached_property
    def _expected(self) -> Pass:
        """Outputs of the graph module in evaluation mode."""
        return self._run(self.graph, self.inputs[0], training=False, gradients=False)

    def _require_equal_outputs(self, copied: nn.Module) -> None:
        unlike = self.pruned.state_dict().keys() ^ copied.state_dict().keys()
        if unlike:
            raise StructureError(f"the state dict of the model's own class has other names ({min(unlike)})")
        outputs = self._run(Form(copied), self.inputs[0], training=False, gradients=False)
        _require_small(same_outputs(self._expected, outputs))

    def _prove(self, copied: nn.Module) -> None:
        """Raise `StructureError` unless a copy has equal outputs and gradients in both modes and at two sizes."""
        form = Form(copied)
        for training in (True, False):
            gradients = training or not self._is_large
            expected = self._run(self.graph, self.inputs[0], training=training, gradients=gradients)
            own = self._run(form, self.inputs[0], training=training, gradients=gradients)
            _require_small(same_outputs(expected, own))
            self._require_equal_gradients(expected, own, training)
        if not self._is_large:
            expected = self._run(self.graph, self.inputs[1], training=False, gradients=False)
            own = self._run(form, self.inputs[1], training=False, gradients=False)
            _require_small(same_outputs(expected, own))

    def _require_equal_gradients(self, expected: Pass, own: Pass, training: bool) -> None:
        differ = differing_gradients(expected.gradients, own.gradients)
        wrong = set(differ) - set(self._wrong_in_graph(training)) if differ else set()
        if differ and not wrong:
            wrong = set(self._unlike_zeroed(own, training))
        if wrong:
            raise StructureError(
                f"the model's own forward has other gradients at the pruned sizes ({', '.join(sorted(wrong)[:3])})"
            )

    def _unlike_zeroed(self, own: Pass, training: bool) -> list[str]:
        """Return the parameters whose gradients differ from those of the dense model with removed entries at zero."""
        zeroed = {name: self._zeroed(name, tensor) for name, tensor in self.state_of_dense.items()}
        dense = self._run(self._dense, self.inputs[0], training=training, state=zeroed)
        if not same_outputs(dense, own) <= TOLERANCE:
            return []  # statistics over cut channels, or a removed branch: no dense model has the same outputs
        kept = {name: g for name, g in dense.gradients.items() if name in own.gradients}
        sliced = slice_tensors(kept, self.masks, self.structure.canonical)
        return differing_gradients(sliced, own.gradients)

    def _zeroed(self, name: str, tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        for dim in range(tensor.dim()):
            mask = self.masks.get(("parameter", self.structure.canonical[name], dim))
            if mask is not None:
                tensor.index_fill_(dim, torch.from_numpy(np.flatnonzero(~mask)), 0)
        return tensor

    # The graph module.

    def require_gradients_of_graph(self, why_not_native: str) -> None:
        """Raise `StructureError` when the dense graph has other gradients than the dense model.

        A model that does not run in float64 is not compared.
        """
        try:
            wrong = self._wrong_in_graph(training=True)
        except StructureError:
            return
        if not wrong:
            return
        causes = custom_functions(self.structure.model, self.structure.example_inputs)
        named = f", which come from {' and '.join(causes)}" if causes else ""
        instead = (
            f"Its own classes have no pruned form: {why_not_native.rstrip('.')}. Move that part out of the model, or "
            "let its forward read sizes from tensors"
            if why_not_native
            else "Keep the model's own classes (native=True)"
        )
        raise StructureError(
            f"the traced graph does not compute the gradients of the model ({', '.join(wrong[:3])}){named}. {instead}."
        )

    def _wrong_in_graph(self, training: bool) -> list[str]:
        """Return the parameters whose gradients differ between the dense graph and the dense model."""
        if training not in self._wrong:
            graph = Form(self.structure.cut({}))
            expected, outputs = (
                self._run(form, self.inputs[0], training=training, state=self.state_of_dense)
                for form in (self._dense, graph)
            )
            same = same_outputs(expected, outputs) <= TOLERANCE
            self._wrong[training] = differing_gradients(expected.gradients, outputs.gradients) if same else []
        return self._wrong[training]

    @cached_property
    def _wrong(self) -> dict[bool, list[str]]:
        return {}

    @cached_property
    def _dense(self) -> Form:
        return Form(self.structure.model)

    def _run(
        self,
        form: Form,
        inputs: Sequence[Tensor],
        *,
        training: bool,
        gradients: bool = True,
        state: Mapping[str, Tensor] | None = None,
    ) -> Pass:
        try:
            return form.run(state or self.state, inputs, training=training, gradients=gradients)
        except Exception as error:  # a user's forward may raise anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if isinstance(form.module, GraphModel):
                raise StructureError(
                    f"the graph module does not run in float64 ({reason}), so nothing is proven"
                ) from error
            raise StructureError(
                f"the model's own forward does not run at the pruned sizes ({type(error).__name__}: {reason}): dense "
                "sizes are written in it"
            ) from error


def _require_small(difference: float) -> None:
    if not difference <= TOLERANCE:
        raise StructureError(
            f"the model's own forward computes something else at the pruned sizes (relative difference "
            f"{difference:.2g}, allowed {TOLERANCE:g}): dense sizes are written in it"
        )
