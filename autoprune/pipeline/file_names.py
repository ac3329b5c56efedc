"""Names that a deployer gives the inputs and outputs of a delivered file."""

from __future__ import annotations

import keyword
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprune.errors import UsageError, VerificationError

Inputs = Sequence[Mapping[str, Any]]
"""For each input of a model its `name`, `dtype` and `shape` at a batch of one."""


@dataclass(frozen=True, kw_only=True)
class FileNames:
    """Names of the inputs and of the outputs of a file, in their order; where there are none, they keep theirs."""

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    @classmethod
    def of(cls, inputs: Sequence[str], outputs: Sequence[str]) -> FileNames:
        """Return names without spaces around them; a single text is one name."""
        (ins, outs) = ((names,) if isinstance(names, str) else tuple(names) for names in (inputs, outputs))
        return cls(inputs=tuple(map(str.strip, ins)), outputs=tuple(map(str.strip, outs)))

    def described(self, inputs: Inputs) -> list[dict[str, Any]]:
        """Return inputs under the names that they have in the file."""
        names = self.inputs or [entry["name"] for entry in inputs]
        return [{**entry, "name": name} for entry, name in zip(inputs, names, strict=True)]

    def options(self) -> list[str]:
        """Return the options of `autoprune export` that give these names."""
        given = {"--input-names": self.inputs, "--output-names": self.outputs}
        return [word for option, names in given.items() if names for word in (option, ",".join(names))]

    def onnx_file(self, path: Path, inputs: Inputs) -> bytes:
        """Return an ONNX file byte for byte, or with these names.

        Raises:
            UsageError: for names that do not fit.
            VerificationError: when the renamed file does not compute the very same numbers on ones.
        """
        proven = path.read_bytes()
        if not self.inputs and not self.outputs:
            return proven
        import numpy as np

        from autoprune.device.connect import make_target
        from autoprune.device.timing import named_feeds, open_session
        from autoprune.onnxgraph.names import renamed_file

        renamed = renamed_file(proven, self.inputs, self.outputs)
        sessions = [open_session(file, make_target("ort-cpu")) for file in (proven, renamed)]
        ones = [np.ones(entry["shape"], entry["dtype"]) for entry in inputs]
        before, after = ([np.asarray(x) for x in s.run(None, named_feeds(s, ones))] for s in sessions)
        if not all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(before, after, strict=True)):
            raise VerificationError(f"{path} computes something else with other names. Export it without them")
        return renamed

    def in_pytorch(self, onnx_path: Path, inputs: Inputs) -> dict[str, Sequence[str]]:
        """Return checked names for a file of PyTorch, whose inputs are arguments of a function.

        Args:
            onnx_path: the model's ONNX file, which has the same outputs.
            inputs: of the model.

        Raises:
            UsageError: for names that do not fit, and inputs that are no identifiers of Python.
        """
        if not self.inputs and not self.outputs:
            return {}
        from autoprune.onnxgraph.names import checked_names, outputs_of_file

        checked_names("input", self.inputs, [entry["name"] for entry in inputs])
        checked_names("output", self.outputs, outputs_of_file(onnx_path))
        if odd := [name for name in self.inputs if not name.isidentifier() or keyword.iskeyword(name)]:
            raise UsageError(f"inputs of a file of PyTorch are arguments in Python; got {', '.join(map(repr, odd))}")
        return {"input_names": self.inputs, "output_names": self.outputs}
