"""Profiling a search space on a target: scan the widths, time sampled policies end to end, fit the table, prove it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from autoprune.device.target import Target
from autoprune.device.timing import Protocol
from autoprune.latency.evidence import Evidence, build_table
from autoprune.latency.geometries import PricedOperators
from autoprune.latency.sampling import random_rows
from autoprune.latency.table import HELD_OUT, LatencyTable
from autoprune.profiling.duration import (
    HELD_OUT_POLICIES,
    MAX_SECONDS,
    REMEASURED,
    REMEASURING,
    SCAN_SHARE,
)  # fmt: skip
from autoprune.profiling.journal import Journal
from autoprune.profiling.policy_timer import PolicyTimer, Progress, make_policy_timer
from autoprune.profiling.profile_work import NODE_SHARE, ProfileWork
from autoprune.records import SearchSpace
from autoprune.structure import Structure

Narrow = Callable[[Mapping[str, Sequence[int]]], SearchSpace]
"""Makes the space to profile from the useful widths of every unit."""


def profile(
    structure: Structure,
    space: SearchSpace,
    target: Target,
    *,
    narrow: Narrow | None = None,
    seed: int = 0,
    on_progress: Progress | None = None,
    max_seconds: float = MAX_SECONDS,
    protocol: Protocol | None = None,
    timer: PolicyTimer | None = None,
    journal: Journal | None = None,
    on_note: Callable[[str], None] = lambda text: None,
    allow_noise: bool = False,
) -> LatencyTable:
    """Measure a latency table on a target: first the staircase of every unit, then policies of the space.

    Rounds of 40 policies follow the scan until the error of new policies no longer falls (where layers are treated: for
    eight rounds), or the time is over; one round is always made. 40 further policies are held out for the error.

    Where latencies vary by more than 5 % from one measurement to the next, policies are timed longer, up to four times
    as long.

    Args:
        structure: The structure to profile.
        space: The widths to scan.
        target: What measures.
        narrow: Makes the space whose policies are timed from the useful widths of every unit; default: `space` itself.
        seed: Seed of the sampled policies and of the order in which they are timed.
        on_progress: Called with every model that is built.
        max_seconds: After so long, by the timer's clock (`patient_clock`), no further round is begun.
        protocol: How often every model is timed.
        timer: What times policies of `structure` on `target`, with its own seed and progress; default: the target's.
        journal: Keeps measurements as they are made (`open_journal`), and answers with those of an interrupted profile.
        on_note: Called with a line about why it takes long.
        allow_noise: Go on where latencies vary too much to be used; the table says so.

    Raises:
        StructureError: The model cannot be exported.
        LatencyError: The exported models cannot be timed.
        NoiseError: Latencies vary by more than 15 % from one measurement to the next.
        RunFolderError: The journal cannot be written.
    """
    protocol = protocol or Protocol()
    journal = journal or Journal(on_note=on_note)
    planned_s = journal.decided("limit", lambda: max_seconds)
    work = ProfileWork(
        timer=timer
        or make_policy_timer(structure, target, layers=space.layer_names, seed=seed, on_progress=on_progress),
        priced=PricedOperators.of(structure, space.layer_names),
        space=space,
        protocol=protocol,
        journal=journal,
        rng=np.random.default_rng(seed),
        evidence=Evidence.none(len(space.levels)),
        max_seconds=min(max_seconds, planned_s),
    )
    prior = work.scan(SCAN_SHARE * planned_s, NODE_SHARE * planned_s)
    work.judge_noise(on_note, allow=allow_noise)
    work.space = space if narrow is None else narrow(work.useful(prior))
    prior = work.prior()
    tested = random_rows(work.space, work.columns, HELD_OUT_POLICIES, work.rng)
    work.time(tested, HELD_OUT)
    work.rounds(prior)
    again = work.measure(tested[:REMEASURED], REMEASURING)
    table = build_table(
        structure,
        work.priced,
        work.space,
        target.fingerprint(),
        work.evidence,
        prior,
        work.conditions(again, seed=seed, seconds=work.elapsed()),
    )
    table.require_quiet(allow_noise=allow_noise)
    return replace(table, accuracy_levels=work.timer.accuracy_levels)


def open_journal(
    path: Path,
    structure: Structure,
    space: SearchSpace,
    timer: PolicyTimer,
    *,
    seed: int,
    narrowed: bool,
    on_note: Callable[[str], None],
    protocol: Protocol | None = None,
) -> Journal:
    """Go on with the journal of an interrupted profile of the same structure, space, target and seed, or begin one.

    Args:
        path: The file; delete it when the table is written.
        structure: The structure that is profiled.
        space: What is profiled at the most.
        timer: What times policies of `structure`.
        seed: Seed of the sampled policies.
        narrowed: Whether the space is narrowed to useful widths.
        on_note: Called with a line when there is a file at `path`.
        protocol: How often every model is timed.

    Raises:
        RunFolderError: The file cannot be read or written.
    """
    conditions = {"structure": structure.digest(), "space": space.to_json(), "target": timer.target.fingerprint()}
    conditions |= {"seed": seed, "protocol": asdict(protocol or Protocol()), "narrowed": narrowed}
    return Journal.open(path, conditions, on_note, timer.clock)
