"""Delivering a model of a run: its file in some format, proven against PyTorch, a script that runs it, its numbers."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_DEFLATED, ZipFile

from autoprune.config import OBJECT_TASK, RunConfig
from autoprune.errors import RunFolderError, UsageError
from autoprune.export.companions import deploy_script, readme
from autoprune.export.formats import FORMATS, INT8_LIMIT, PACKED, PARITY_LIMIT, Places, places
from autoprune.export.vocabulary_note import described_vocabularies
from autoprune.files import digest_of_file
from autoprune.front import latency_of
from autoprune.manifest import Manifest
from autoprune.pipeline.conversion import convert
from autoprune.pipeline.document import to_json
from autoprune.pipeline.file_names import FileNames
from autoprune.report.asked import asked_text
from autoprune.report.tables import treated_layers
from autoprune.run_documents import read_metrics
from autoprune.runfolder import read_json, write_atomic
from autoprune.temporary import TemporaryFolder

if TYPE_CHECKING:
    from autoprune.pipeline.run import Candidate

_NO_OPTIONS = ("reconstruct", "run_id")
"""Fields of a configuration without an option on the command line."""

_OPTIONS = {"budgets": "--budget", "max_minutes": "--max-time"}
"""Options that are called otherwise than their field."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A delivered model.

    Args:
        format: a key of `autoprune.export.formats.FORMATS`.
        paths: of its file, its script and its page.
        difference: largest output difference to PyTorch, relative to the largest output; `None` where a file with int8
            layers alone was scored, and not compared.
        limit: the largest that is allowed.
    """

    format: str
    paths: Places
    difference: float | None
    limit: float

    def __str__(self) -> str:
        if self.difference is None:
            return "the file that was scored and measured in the search, byte for byte"
        whose = "those of the model with weights rounded alike" if self.format == PACKED else "PyTorch's"
        return f"outputs differ from {whose} by at most {self.difference:.2g} of the largest, allowed {self.limit:g}"


def deliver(
    candidate: Candidate,
    out: str | Path,
    format: str | None = None,
    *,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    sparse: bool = False,
    shown_out: str | Path | None = None,
) -> Delivery:
    """Write a model of a run, the script that runs it, and a page with its numbers.

    An ONNX file is a copy of the one that the search proved and measured, at most with other names; other formats are
    written now and compared with PyTorch on real examples at once. `places` says which files are written.

    Args:
        candidate: the model.
        out: a file of the format, or a folder.
        format: a key of `FORMATS`; by default what `out` ends like, and ONNX for a folder.
        input_names: of the file's inputs in their order; by default the arguments of the model's `forward`.
        output_names: of its outputs in their order; by default the keys of what the model returns. In a file of
            PyTorch they are keys of a dict.
        sparse: whether an ONNX file holds weights with many zeros as sparse initializers, which ONNX Runtime makes
            dense when it loads the file.
        shown_out: stands for `out` in the command on the page, where `out` is temporary.

    Raises:
        UsageError: for an unknown format, a file of another, int8 layers in a format that cannot hold them, names that
            do not fit, or OpenVINO that is not installed.
        StructureError: when PyTorch or OpenVINO cannot make the file.
        VerificationError: when it computes something else; no file is left then.
        RunFolderError: when the model's file in the run folder is gone, or is not the one that was proven.
    """
    name, paths = places(out, format)
    int8 = candidate.record.policy.is_rounded or candidate.run.config.precision == "int8"
    if int8 and not FORMATS[name].int8:
        holding = " or ".join(key for key, kind in FORMATS.items() if kind.int8)
        raise UsageError(
            f"{candidate.digest} has int8 layers, and a {name} file would compute them in fp32, at another latency and "
            f"score than measured. Export {holding}; the float model is `Candidate.model()` in Python"
        )
    metrics = read_metrics(candidate.run.folder, candidate.digest)
    _require_proven(candidate, metrics)
    inputs = metrics.get("inputs") or _inputs(candidate)
    names = FileNames.of(input_names, output_names)
    if name == PACKED:
        _require_packable(candidate, names)
    if sparse and name != "onnx":
        raise UsageError(f"sparse initializers are for ONNX files; got the format {name}. Leave out --sparse")
    if name == "onnx":
        content = names.onnx_file(candidate.onnx_path, inputs)
        write_atomic(paths.model, _with_sparse_initializers(content) if sparse else content)
        known = metrics.get("int8_relative_difference", None if int8 else metrics["onnx_relative_difference"])
        delivery = Delivery(format=name, paths=paths, difference=known, limit=INT8_LIMIT if int8 else PARITY_LIMIT)
    else:
        limit = INT8_LIMIT if int8 and name != PACKED else PARITY_LIMIT
        difference = convert(candidate, name, paths.model, names, inputs, int8=int8, limit=limit)
        delivery = Delivery(format=name, paths=paths, difference=difference, limit=limit)
    inputs = names.described(inputs)
    target = candidate.run.document["latency_table"]["target"]
    provider = target.get("provider") or "CPUExecutionProvider"
    script = deploy_script(
        name, paths.model.name, paths.script.name, inputs, provider, _build_model(candidate),
        keywords=name == PACKED and _takes_keywords(candidate),
    )  # fmt: skip
    write_atomic(paths.script, script.encode())
    write_atomic(paths.page, _page(candidate, delivery, inputs, names, shown_out or out, sparse).encode())
    return delivery


def _require_packable(candidate: Candidate, names: FileNames) -> None:
    """Raise `UsageError` for what a file of weights cannot hold."""
    if candidate.run.config.precision == "int8" and not candidate.record.policy.is_rounded:
        raise UsageError(
            f"{candidate.digest} was quantized as a whole, and a {PACKED} file would hold its weights in fp32. Export "
            "onnx, or search with a space that has int8, such as --space joint"
        )
    if names.options():
        raise UsageError(f"a {PACKED} file holds weights alone: its inputs and outputs have no names. Leave them out")


def _takes_keywords(candidate: Candidate) -> bool:
    """Return whether the model of a run is given its inputs by name."""
    from autoprune.pipeline.verification import load_model

    cut = load_model(candidate.run.dense_model, candidate.run.folder, candidate.record.policy).pruned_to
    return cut is not None and any(taken.keyword is not None for taken in cut.inputs)


def _build_model(candidate: Candidate) -> str | None:
    """Return, in Python, the function that returns the dense model of a run; `None` for a task of this process."""
    config = candidate.run.config
    if config.task == OBJECT_TASK:
        return None
    options = [f"model={config.model!r}"] if config.model else []
    options += [f"data_dir=Path({config.data_dir!r})"] if config.data_dir else []
    return f"load_task({', '.join([repr(config.task), *options])}).build_model"


def _with_sparse_initializers(content: bytes) -> bytes:
    from autoprune.onnxgraph.sparse import with_sparse_initializers

    return with_sparse_initializers(content)


def packed(candidate: Candidate) -> bytes:
    """Return a ZIP archive of a folder, named by the digest, with the ONNX file, its script and its page.

    Raises:
        RunFolderError: as `deliver`.
    """
    name, buffer = candidate.digest, BytesIO()
    with TemporaryFolder("delivery") as parent, ZipFile(buffer, "w", ZIP_DEFLATED) as archive:
        for path in vars(deliver(candidate, parent / name, shown_out=name).paths).values():
            archive.write(path, f"{name}/{path.name}")
    return buffer.getvalue()


def _require_proven(candidate: Candidate, metrics: dict[str, Any]) -> None:
    """Raise `RunFolderError` when the file of a model is gone or changed; older versions kept no digest of it."""
    path = candidate.onnx_path
    if not path.exists():
        raise RunFolderError(f"{path} is gone; `autoprune verify` makes it again")
    known = metrics.get("onnx_sha256")
    if known is not None and known != digest_of_file(path):
        raise RunFolderError(f"{path} is not the file that was proven; `autoprune verify` makes it again")
    Manifest(candidate.run.folder).require(path)


def _inputs(candidate: Candidate) -> list[dict[str, Any]]:
    """Return the inputs of a model that a version of autoprune verified which did not note them."""
    from autoprune.pipeline.verification import described_inputs

    return described_inputs(candidate.model(native=False), candidate.run.open_task())  # type: ignore[arg-type]


def _page(
    candidate: Candidate,
    delivery: Delivery,
    inputs: list[dict[str, Any]],
    names: FileNames,
    out: str | Path,
    sparse: bool,
) -> str:
    run, record = candidate.run, candidate.record
    dense, target, metric = run.document["dense"], run.document["latency_table"]["target"], run.document["metric"]
    export = ["autoprune", "export", str(run.folder.path), "--policy", record.digest]
    export += ["--format", delivery.format, "--out", str(out)]
    export += [*names.options(), *(["--sparse"] if sparse else [])]
    rows = {
        f"{metric}, validation": (f"{record.score:.4f}", f"{dense['score']:.4f}"),
        f"{metric}, test": (_number(record.test_score, ".4f"), _number(dense.get("test_score"), ".4f")),
        f"latency (ms), {'predicted' if record.latency_ms_measured is None else 'measured'}": (
            f"{latency_of(record):.4g}",
            f"{dense['latency_ms_measured']:.4g}",
        ),
    }
    for key in ("bytes", "params", "macs", "activation_bytes"):
        rows[key.replace("_", " ")] = (_number(getattr(record, key), ","), _number(dense.get(key), ","))
    precision = treated_layers(to_json(record), run.document.get("layers", 0)) if record.policy.treatments else None
    device = _target(target, precision)
    facts = {
        "latency": f"{record.latency_ratio:.1%} of the dense model's, on {device}; this is the ONNX file's",
        "budget": f"{asked_text(run.config.budgets, record.budget)}, {'met' if record.meets_budget else 'not met'}"
        if record.budget
        else "none",
        "proof": f"{delivery}",
        "inputs": "; ".join(f"`{x['name']}` {x['dtype']} {tuple(x['shape'])}" for x in inputs)
        + ", the first dimension is the batch",
        "policy": f"`{record.digest}`, proposed by {record.strategy}",
        "made by": f"`{search_command(run.config, run.folder.path)}`, then `{shlex.join(export)}`",
        "versions": _versions(run.folder.environment),
    }
    if delivery.format == PACKED and record.policy.is_rounded:
        facts["scores"] = "of the ONNX file, whose int8 layers also round what they read; those of this file do not"
    ids = described_vocabularies(run.folder.dense)
    facts |= {"ids": f"{ids}; the map is a part of the file"} if ids else {}
    task = Path(run.config.task).name if run.task is None else run.task.name
    title = f"{task}: model {record.digest}, {record.latency_ratio:.1%} of the dense latency"
    return readme(title, delivery.format, delivery.paths.model.name, rows, facts)


def _number(value: float | None, style: str) -> str:
    return "" if value is None else format(value, style)


def _target(target: dict[str, Any], precision: str | None) -> str:
    """Return a device in words, and what is computed on it: its precision, or that of treated layers."""
    return (
        f"{target['name']} ({target['cpu']}, {target['runtime']} {target['runtime_version']}, "
        f"threads {target['threads']}, batch {target['batch']}, {precision or target['precision']})"
    )


def _versions(environment: Path) -> str:
    known = read_json(environment)
    return ", ".join(f"{name} {version}" for name, version in {"python": known["python"], **known["versions"]}.items())


def search_command(config: RunConfig, run_dir: Path) -> str:
    """Return the command line of a search: the options that differ from their defaults."""
    words = ["autoprune", "search", "--run-dir", str(run_dir)]
    for name in sorted(config.model_fields_set - set(_NO_OPTIONS)):
        value, default = getattr(config, name), RunConfig.model_fields[name].get_default(call_default_factory=True)
        if value == default or value is None:
            continue
        option = _OPTIONS.get(name, f"--{name.replace('_', '-')}")
        if isinstance(value, bool):
            words.append(option)
            continue
        texts = value if isinstance(value, tuple) else [f"{value:.15g}m"] if name == "max_minutes" else [value]
        if isinstance(value, dict):
            texts = [",".join(f"{key}={amount:g}" for key, amount in value.items())]
        words += [word for text in texts for word in (option, str(text))]
    return shlex.join(words)
