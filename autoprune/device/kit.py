"""Kits for devices that cannot run this package: ONNX models, inputs and one plain script; and what comes back.

A kit is a zip file: kit.json (which models to profile and to time, and how), inputs.npz, models/*.onnx with constant
weights (so that the zip is small), measure.py. Nothing in a returned file is trusted: it is compared with the kit that
was sent, and every name, size and number is checked.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from autoprune.device import measure
from autoprune.device.kit_manifest import KitManifest
from autoprune.device.measure import Block, Protocol
from autoprune.device.timing import Feeds, Kernels, Timings, timings_of
from autoprune.errors import KitError
from autoprune.files import parsed_json
from autoprune.records import digest_of

SCHEMA = 1
_REFERENCE = "reference.onnx"
_MOST_BYTES = 256 * 2**20
_MOST_KIT, _MOST_MANIFEST = 2**31, 64 * 2**20
_LONGEST_MS = 3_600_000.0
_LONGEST_JOB_S = 1e7
_NO_ARCHIVE = (
    KeyError, ValueError, EOFError, RuntimeError, OSError, zlib.error, struct.error, zipfile.BadZipFile,
)  # fmt: skip
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class KitResults:
    """Measurements of a device: its fingerprint, the profiled models in the order of the kit, and the timed ones.

    `timings` is `None` when the kit times nothing. `seconds` is what all of it took there; 0 of older kits.
    """

    target: Mapping[str, Any]
    kernels: tuple[Kernels, ...]
    timings: Timings | None
    seconds: float = 0.0


def kit_bytes(
    models: Iterable[bytes],
    reference: bytes,
    feeds: Feeds,
    *,
    provider: str,
    threads: int,
    protocol: Protocol,
    timed: Sequence[int],
    profiled: Sequence[int],
    origin: Mapping[str, Any] | None = None,
) -> bytes:
    """A zipped kit that times some `models` beside `reference` and profiles some, both by position.

    `models` may be a generator: one at a time is in memory, beside the zip file. `origin` (JSON) is for whoever imports
    the results; the device does not read it. Equal content, equal bytes.
    """
    inputs, packed = io.BytesIO(), io.BytesIO()
    arrays: dict[str, Any] = {f"input_{i}": np.asarray(feed) for i, feed in enumerate(feeds)}
    np.savez(inputs, **arrays)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        # What decides the numbers has its digest in the manifest, whose own digest tells kits apart: a measurement that
        # broke off goes on for an equal kit alone.
        manifest: dict[str, Any] = {
            "schema": SCHEMA,
            "provider": provider,
            "threads": threads,
            "protocol": asdict(protocol),
            "profiled": [_model_name(i) for i in profiled],
            "timed": [_model_name(i) for i in timed],
            "reference": _REFERENCE,
            "origin": dict(origin or {}),
            "inputs": _add(archive, "inputs.npz", inputs.getvalue()),
            "script": _add(archive, "measure.py", Path(measure.__file__).read_bytes()),
            "models": {_model_name(i): _add(archive, f"models/{_model_name(i)}", m) for i, m in enumerate(models)},
        }
        manifest["models"][_REFERENCE] = _add(archive, f"models/{_REFERENCE}", reference)
        manifest["kit"] = digest_of(manifest, length=32)
        _add(archive, "kit.json", json.dumps(manifest, indent=1).encode())
    return packed.getvalue()


def _model_name(number: int) -> str:
    return f"{number:04d}.onnx"


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> str:
    """Pack a file, always with the same date, and return the digest of its content."""
    archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
    return hashlib.sha256(content).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """Content of kit.json of a kit that this host made; `KitError` when it is none or was changed."""
    try:
        if path.stat().st_size > _MOST_KIT:
            raise KitError(f"{path} is larger than {_MOST_KIT:,} bytes; that is no kit of autoprune")
        content = path.read_bytes() if path.is_file() else b""
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", error)
        raise KitError(f"{path} cannot be read: {cause}. Make a kit with `autoprune profile kit`.") from error
    return kit_manifest(content, path)


def kit_manifest(content: bytes, source: object) -> dict[str, Any]:
    """The manifest of a zipped kit; `KitError` when it is none or its digest is not that of its content."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive, archive.open("kit.json") as file:
            text = file.read(_MOST_MANIFEST + 1)  # whatever size the archive claims
        if len(text) > _MOST_MANIFEST:
            raise ValueError(f"its kit.json is larger than {_MOST_MANIFEST:,} bytes")
        manifest = parsed_json(text)
    except _NO_ARCHIVE as error:
        raise KitError(f"{source} is no kit of autoprune: {error}. Make one with `autoprune profile kit`.") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise KitError(f"{source} is no kit of this version of autoprune. Make one with `autoprune profile kit`.")
    values = {key: value for key, value in manifest.items() if key != "kit"}
    if manifest.get("kit") != digest_of(values, length=32):
        raise KitError(f"{source} was changed after it was made. Make it again with `autoprune profile kit`.")
    try:
        KitManifest.model_validate(manifest)
        Protocol(**manifest["protocol"])
    except (ValidationError, TypeError, ValueError) as error:
        wrong = ".".join(map(str, error.errors()[0]["loc"])) if isinstance(error, ValidationError) else "protocol"
        raise KitError(f"{source} is no kit of autoprune: its {wrong} is of a wrong type or value.") from error
    return manifest


def read_results(path: Path, manifest: Mapping[str, Any]) -> KitResults:
    """Results of the kit with this manifest, every value checked.

    Raises `KitError` that names the first thing that is wrong: another kit, a model that is absent or unknown, a time
    that is negative, not finite or absurd, an array of the wrong shape.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise KitError(f"{path} is larger than {_MOST_BYTES} bytes; that is no result of this kit")
        document = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise KitError(
            f"{path} cannot be read: {error}. Run measure.py on the device again and copy results.json."
        ) from error
    return parse_results(document, manifest, path)


def parse_results(document: Any, manifest: Mapping[str, Any], source: object) -> KitResults:
    """As `read_results`, from the parsed JSON."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise KitError(f"{source} is no result of a kit of this version (schema {SCHEMA})")
    if document.get("kit") != manifest["kit"]:
        raise KitError(
            f"{source} belongs to kit {document.get('kit')!r}, not to {manifest['kit']!r}. Import it with its own kit."
        )
    jobs = document.get("jobs")
    if not isinstance(jobs, list) or not all(isinstance(job, dict) for job in jobs):
        raise KitError(f"{source}: `jobs` must be a list of measurements")
    by_models: dict[tuple[str, ...], dict[str, Any]] = {}
    for job in jobs:
        key = (str(job.get("kind")), *(_texts(job.get("models"), source, "models")))
        if key in by_models:
            raise KitError(f"{source}: {', '.join(key[1:])} was measured twice. Run measure.py in a fresh folder.")
        by_models[key] = job
    protocol = Protocol(**manifest["protocol"])
    timed, size = manifest["timed"], protocol.block
    wanted_nodes = [("nodes", name) for name in manifest["profiled"]]
    wanted_blocks = [("block", *timed[i : i + size]) for i in range(0, len(timed), size)]
    _same_jobs(set(by_models), {*wanted_nodes, *wanted_blocks}, source)
    blocks = [_checked_block(by_models[key], key[1:], protocol, source) for key in wanted_blocks]
    return KitResults(
        target=checked_target(document.get("target"), manifest, source),
        kernels=tuple(_kernels(by_models[key], source) for key in wanted_nodes),
        timings=timings_of(blocks) if blocks else None,
        seconds=sum(_seconds(job, source) for job in jobs),
    )


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no measurement")


def _same_jobs(measured: set[tuple[str, ...]], wanted: set[tuple[str, ...]], source: object) -> None:
    missing, unknown = wanted - measured, measured - wanted
    if unknown:
        raise KitError(f"{source} holds measurements of models that are not in the kit: {sorted(unknown)[0][1:]}")
    if missing:
        raise KitError(
            f"{source} lacks {len(missing)} of {len(wanted)} measurements. Run measure.py on the device to the end."
        )


def checked_target(value: Any, manifest: Mapping[str, Any], source: object) -> Mapping[str, Any]:
    """The fingerprint that a device gave, if it may be one of the provider and threads that were asked for."""
    texts = ("provider", "runtime", "runtime_version", "cpu", "accelerator")
    if not isinstance(value, dict) or set(value) != {*texts, "threads", "isa"}:
        raise KitError(f"{source}: the device's fingerprint is missing or has other fields")
    for key in texts:
        if not isinstance(value[key], str) or len(value[key]) > 200 or not value[key].isprintable():
            raise KitError(f"{source}: {key} of the device must be a short text; got {value[key]!r:.60}")
    _texts(value["isa"], source, "isa")
    for key in ("provider", "threads"):
        if value[key] != manifest[key] or type(value[key]) is not type(manifest[key]):
            raise KitError(f"{source} was measured with {key} {value[key]!r}; the kit asks for {manifest[key]!r}")
    return value


def _checked_block(job: Mapping[str, Any], names: Sequence[str], protocol: Protocol, source: object) -> Block:
    shape = (len(names), protocol.repeats)
    samples = _times(job.get("samples_ms"), shape, source, names)
    reference = _times(job.get("reference_ms"), (protocol.repeats * protocol.reference_samples,), source, names)
    repeated = job.get("repeated")
    if not isinstance(repeated, int) or not 0 <= repeated <= protocol.retries:
        raise KitError(f"{source}: `repeated` is 0 to {protocol.retries}; got {repeated!r}")
    waited = job.get("waited", 0.0)
    if isinstance(waited, bool) or not isinstance(waited, int | float) or not 0 <= waited <= 1:
        raise KitError(f"{source}: `waited` is a share from 0 to 1; got {waited!r}")
    return Block(samples, reference, repeated, float(waited))


def _seconds(job: Mapping[str, Any], source: object) -> float:
    value = job.get("seconds", 0.0)
    if type(value) not in (int, float) or not 0 <= value <= _LONGEST_JOB_S:
        raise KitError(f"{source}: the seconds of a measurement are 0 to {_LONGEST_JOB_S:g}; got {value!r:.60}")
    return float(value)


def _kernels(job: Mapping[str, Any], source: object) -> Kernels:
    names = _texts(job.get("kernels"), source, "kernels")
    runs = len(job["ms"]) if isinstance(job.get("ms"), list) else 0
    ms = _times(job.get("ms"), (runs, len(names)), source, job["models"], least=0.0)
    return Kernels(names=names, ms=ms)


def _times(
    value: Any, shape: tuple[int, ...], source: object, names: Sequence[str], least: float = math.ulp(0.0)
) -> np.ndarray:
    """Milliseconds of the wanted shape, all between `least` and an hour."""
    times = np.array(value, dtype=object)  # objects: untrusted content takes no more memory than it has
    if times.shape != shape:
        raise KitError(f"{source}: times of {', '.join(names)} must have shape {shape}; got {times.shape}")
    for time in times.flat:
        if type(time) not in (int, float):
            raise KitError(f"{source}: times of {', '.join(names)} must be numbers; got {time!r:.60}")
        if not least <= time <= _LONGEST_MS:
            raise KitError(
                f"{source}: a time is above 0 and at most an hour, in milliseconds; {', '.join(names)} has {time!r:.60}"
            )
    return times.astype(float)


def _texts(value: Any, source: object, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(
        isinstance(v, str) and len(v) <= 1_000 and v.isprintable() for v in value
    ):
        raise KitError(f"{source}: {key} must be a list of names; got {value!r:.60}")
    return tuple(value)
