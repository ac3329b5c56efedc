"""Profiling a device that cannot run this package: which models its kit holds, and the table that its results make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.device.kit import kit_bytes, read_manifest, read_results
from autoprune.device.target import Target, check_target, target_of
from autoprune.device.timing import Protocol, Timings, busy_notes
from autoprune.errors import AutopruneError, KitError, LatencyError
from autoprune.latencies import Geometry
from autoprune.latency.charges import PricedOperator
from autoprune.latency.evidence import Conditions, Evidence, build_table, occurrences
from autoprune.latency.geometries import PricedOperators, possible_geometries
from autoprune.latency.predictor import GeometryIndex
from autoprune.latency.prior import prior_ms
from autoprune.latency.sampling import covering_rows, random_rows, scanned_rows, uniform_ladder
from autoprune.latency.table import FIT, HELD_OUT, SCAN, LatencyTable
from autoprune.profiling.node_times import profiled_ms
from autoprune.profiling.policy_timer import Progress, make_policy_timer
from autoprune.profiling.profile_work import as_prior, scanned_geometries
from autoprune.records import SearchSpace
from autoprune.structure import Structure

_COVERING, _HELD_OUT, _REMEASURED, _PROFILED = 200, 40, 16, 60
AGAIN = "again"
"""Second measurements of the first held-out policies."""


def make_kit(
    structure: Structure,
    space: SearchSpace,
    target_name: str,
    *,
    scanned: Mapping[str, Sequence[int]] | None = None,
    threads: int = 1,
    batch: int = 1,
    precision: str = "fp32",
    seed: int = 0,
    protocol: Protocol | None = None,
    origin: Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
) -> bytes:
    """Return a zipped kit: scans of every unit, 200 policies that cover `space`, 40 held-out policies.

    A device cannot be asked for the useful widths before the kit is made; the imported table tells them.

    Args:
        structure: The structure whose latency is measured.
        space: The space whose policies are timed.
        target_name: A target that runs ONNX models; this host need not have its provider.
        scanned: Widths of every unit to scan; default: those of `space`.
        threads: Threads of the runtime on the device.
        batch: Examples of one run.
        precision: Precision of the models, such as `fp32`.
        seed: Seed of the sampled policies and of the order in which they are timed.
        protocol: How often every model is timed.
        origin: Options that the importer of the results needs; kept in the kit.
        on_progress: Called with every model that is built.

    Raises:
        KitError: The target does not run ONNX models.
        UsageError: There is no such target, or it does not have the precision.
    """
    kind = check_target(target_name, precision)
    if kind.runtime != "onnxruntime":
        raise KitError(f"a kit holds ONNX models; {target_name} does not run them. Choose an ort target.")
    target = _somewhere(target_name, kind.provider, threads, batch, precision)
    timer = make_policy_timer(
        structure, target, layers=space.layer_names, seed=seed, on_progress=on_progress, constant_weights=True
    )
    widths_of = scanned or {name: space.widths_of(name) for name in space.unit_names}
    rows, roles = _policies(structure, space, widths_of, seed)
    planned = {
        "space": space.to_json(),
        "structure": structure.digest(),
        "target": {"name": target_name, "batch": batch, "precision": precision},
        "seed": seed,
        "widths": rows.tolist(),
        "roles": list(roles),
    }
    fit_rows = [number for number, role in enumerate(roles) if role == FIT]
    return kit_bytes(
        timer.models(rows, "building models"),
        timer.dense,
        timer.feeds,
        provider=kind.provider,
        threads=threads,
        protocol=protocol or Protocol(),
        timed=np.random.default_rng(seed).permutation(len(rows)).tolist(),
        profiled=fit_rows[-_PROFILED:],
        origin=planned | {"options": dict(origin or {})},
    )


def import_kit(results: Path, kit: Path, structure: Structure) -> LatencyTable:
    """Fit the table that a device's results make.

    Args:
        results: The file that `measure.py` wrote on the device.
        kit: The kit that was measured.
        structure: The structure that the kit was made for.

    Raises:
        KitError: The results cannot be believed, or kit, results and structure do not belong together.
    """
    manifest = read_manifest(kit)
    try:
        return _imported(results, kit, structure, manifest)
    except AutopruneError as error:
        if isinstance(error, (KitError, LatencyError)):
            raise
        raise KitError(f"{kit} is damaged: {error}") from error
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise KitError(f"{kit} is damaged: {type(error).__name__}: {error}. Make it again") from error


def _imported(results: Path, kit: Path, structure: Structure, manifest: Mapping[str, Any]) -> LatencyTable:
    origin = manifest["origin"]
    if origin.get("structure") != structure.digest():
        raise KitError(f"{kit} was made for another model than this task's. Import it with the task it was made for.")
    measured = read_results(results, manifest)
    if measured.timings is None:
        raise KitError(f"{results} holds no timings. Run measure.py on the device again and copy results.json.")
    row_of = {name: row for row, name in enumerate(sorted(set(manifest["models"]) - {manifest["reference"]}))}
    ratios = np.empty(len(row_of))
    ratios[[row_of[name] for name in manifest["timed"]]] = measured.timings.ratios
    rows, roles = np.array(origin["widths"], dtype=np.int64), np.array(origin["roles"])
    again = roles == AGAIN
    evidence = Evidence(rows=rows[~again], ratios=ratios[~again], roles=tuple(roles[~again].tolist()))
    space = SearchSpace.from_json(origin["space"])
    priced = PricedOperators.of(structure, space.layer_names)
    target = target_of(measured.target, **origin["target"])
    timer = make_policy_timer(structure, target, layers=space.layer_names, seed=origin["seed"], constant_weights=True)
    geometries = _geometries(priced.varying, space, evidence.rows)
    profiled = rows[[row_of[name] for name in manifest["profiled"]]]
    numbers = GeometryIndex(priced.varying, geometries).numbers(profiled)
    prior = as_prior(
        geometries, prior_ms(geometries, profiled_ms(geometries, numbers, measured.kernels, timer.dense_onnx, priced))
    )
    notes = (*timer.notes, *busy_notes([measured.timings]), f"measured by a kit on {measured.target['cpu']}")
    conditions = _conditions(measured.timings, ratios[again], origin["seed"], measured.seconds, notes)
    return build_table(structure, priced, space, target.fingerprint(), evidence, prior, conditions)


def _conditions(timings: Timings, again: np.ndarray, seed: int, seconds: float, notes: Sequence[str]) -> Conditions:
    """How a device timed the policies of a kit; `again` `[A]` are the ratios of the second measurements."""
    return Conditions(
        dense_ms=timings.reference_ms,
        noise=timings.noise,
        seed=seed,
        seconds=seconds,
        again=again,
        drift=timings.drift,
        repeated_blocks=timings.repeated_blocks,
        notes=notes,
    )


def _policies(
    structure: Structure, space: SearchSpace, scanned: Mapping[str, Sequence[int]], seed: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Policies of a kit, int64 `[P, U + L]`, and the role of each."""
    rng = np.random.default_rng(seed)
    names = tuple(space.levels)
    varying = PricedOperators.of(structure, space.layer_names).varying
    scans = scanned_rows(space, varying, scanned)
    ladder = uniform_ladder(space)
    geometries = _geometries(varying, space, scans)
    index = GeometryIndex(varying, geometries)
    seen = occurrences(index.numbers(np.concatenate([scans, ladder])), len(geometries)).sum(axis=0)
    covering = covering_rows(space, names, index, _COVERING, seen, rng)
    tested = random_rows(space, names, _HELD_OUT, rng)
    parts = {SCAN: scans, FIT: np.concatenate([ladder, covering]), HELD_OUT: tested, AGAIN: tested[:_REMEASURED]}
    return np.concatenate([*parts.values()]), tuple(role for role, rows in parts.items() for _ in rows)


def _geometries(varying: Sequence[PricedOperator], space: SearchSpace, rows: np.ndarray) -> tuple[Geometry, ...]:
    """Geometries of rows `[P, U + L]` and of every policy of `space`, in a stable order."""
    of_space = possible_geometries(varying, space, tuple(space.levels))
    return tuple(scanned_geometries(varying, rows) | dict.fromkeys(of_space))


def _somewhere(name: str, provider: str, threads: int, batch: int, precision: str) -> Target:
    """A target on a device that nobody asked yet."""
    return Target(
        name=name, provider=provider, threads=threads, batch=batch, precision=precision,
        runtime="onnxruntime", runtime_version="", cpu="", isa=(),
    )  # fmt: skip
