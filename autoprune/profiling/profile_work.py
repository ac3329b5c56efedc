"""The work of a profile: scans, rounds of policies, and the noise that they are timed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from autoprune.device.noise import HostState, require_quiet, times_longer, what_is_busy
from autoprune.device.timing import Kernels, Protocol, Timings, busy_notes
from autoprune.latencies import Geometry
from autoprune.latency.charges import PricedOperator
from autoprune.latency.efficient_widths import staircases, useful_treatments
from autoprune.latency.evidence import Conditions, Evidence, fit_evidence, occurrences, predictor_of
from autoprune.latency.fitting import Fit
from autoprune.latency.geometries import PricedOperators, possible_geometries
from autoprune.latency.predictor import GeometryIndex
from autoprune.latency.prior import prior_ms
from autoprune.latency.sampling import covering_rows, every_other, random_rows, scanned_rows, uniform_ladder
from autoprune.latency.table import FIT, SCAN
from autoprune.profiling.duration import (
    LOAD_S,
    MOST_ROUNDS,
    REMEASURED,
    ROUND,
    STAGES,
    seconds_each,
)  # fmt: skip
from autoprune.profiling.journal import Journal
from autoprune.profiling.node_times import profiled_ms
from autoprune.profiling.policy_timer import PolicyTimer
from autoprune.records import SearchSpace

_GAIN = 0.95
"""A round is worth its time when it takes the error below this share of the best so far, or if layers are treated."""

NODE_SHARE, _MOST_NODES, _LEAST_NODES, _NODE_RUNS = 0.15, 120, 24, 20


@dataclass(kw_only=True)
class ProfileWork:
    """A profile in the making: the timer, the policies timed so far, and their timings."""

    timer: PolicyTimer
    priced: PricedOperators
    space: SearchSpace
    protocol: Protocol
    rng: np.random.Generator
    evidence: Evidence
    max_seconds: float
    journal: Journal = field(default_factory=Journal)
    timings: list[Timings] = field(default_factory=list)
    profiled: np.ndarray = field(default_factory=lambda: np.empty((0, 0), dtype=np.int64))
    kernels: list[Kernels] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    host: HostState = field(default_factory=HostState.now)
    start: float = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.timer.clock()

    @property
    def varying(self) -> tuple[PricedOperator, ...]:
        """The operators that some unit or layer changes."""
        return self.priced.varying

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of rows: units, then layers."""
        return tuple(self.space.levels)

    @property
    def dense_ms(self) -> float:
        """Quiet latency of the dense model over everything that was timed."""
        return float(np.median([timings.reference_ms for timings in self.timings]))

    @property
    def noise(self) -> float:
        """Relative standard deviation of one measured ratio."""
        return float(np.median([timings.noise for timings in self.timings]))

    def elapsed(self) -> float:
        """Seconds that the profile has taken, those before an interruption included."""
        return self.timer.clock() - self.start + self.journal.seconds

    def conditions(self, again: np.ndarray, *, seed: int, seconds: float) -> Conditions:
        """How everything so far was timed; `again` `[A]` are second ratios of the first `A` held-out policies."""
        return Conditions(
            dense_ms=self.dense_ms,
            noise=self.noise,
            seed=seed,
            again=again,
            drift=max(timings.drift for timings in self.timings),
            repeated_blocks=sum(timings.repeated_blocks for timings in self.timings),
            seconds=seconds,
            notes=(*self.timer.notes, *self.notes, *busy_notes(self.timings), *self._host_notes()),
        )

    def _host_notes(self) -> list[str]:
        return [] if self.timer.target.address else HostState.now().notes_since(self.host)

    def judge_noise(self, on_note: Callable[[str], None], *, allow: bool) -> None:
        """Time policies longer from here on where latencies vary much, and say why; refuse where they vary too much."""
        require_quiet(self.noise, allow=allow)
        longer = times_longer(self.noise)
        if longer > 1:
            busy = "" if self.timer.target.address else f" ({what_is_busy()})"
            on_note(
                f"latencies vary by {self.noise:.0%} from one measurement to the next{busy}, so policies are timed "
                f"{longer} times as long"
            )
            self.protocol = replace(self.protocol, repeats=longer * self.protocol.repeats)
            self.max_seconds *= longer

    def measure(self, rows: np.ndarray, stage: str) -> np.ndarray:
        """Ratios to the dense model, in random order: slow changes cannot tell kinds of policies apart."""
        order = self.rng.permutation(len(rows))
        ratios: list[float] = []
        for timer, block in self._blocks(rows[order]):
            timings = self.journal.timings(stage, block, partial(timer.time, block, stage, self.protocol))
            timer.on_progress(stage, len(block), len(block))  # of a known block, nothing was told yet
            self.timings.append(timings)
            ratios += timings.ratios
        return np.array(ratios)[np.argsort(order)]

    def _blocks(self, rows: np.ndarray) -> Iterator[tuple[PolicyTimer, np.ndarray]]:
        """Yield as many rows at a time as the journal keeps, with a timer that counts all of them."""
        # A kit on another host holds all of the rows, and goes on by itself when its measurement broke off.
        size = len(rows) if self.timer.target.address else self.protocol.block
        for begin in range(0, len(rows), size):
            told = partial(self._told, begin, len(rows))
            yield replace(self.timer, on_progress=told), rows[begin : begin + size]

    def _told(self, begin: int, total: int, stage: str, done: int, _: int) -> None:
        self.timer.on_progress(stage, begin + done, total)

    def time(self, rows: np.ndarray, role: str) -> None:
        """Measure rows and keep them as evidence."""
        if len(rows):
            ratios = self.measure(rows, STAGES[role])
            self.evidence = self.evidence.plus(rows, ratios, role)

    def scan(self, seconds: float, node_seconds: float) -> dict[Geometry, float]:
        """Time every width of every unit, as many as fit into the time, and profile some kernels; returns the prior."""
        run_s, build_s = self.journal.cost(self._cost)
        most = int(seconds / seconds_each(run_s, build_s, self.protocol))
        widths = {name: self.space.widths_of(name) for name in self.space.unit_names}
        count, rows = sum(map(len, widths.values())), self._scan_rows(widths)
        while len(rows) > most and max(len(levels) for levels in widths.values()) > 4:
            widths = {name: every_other(levels) if len(levels) > 4 else levels for name, levels in widths.items()}
            rows = self._scan_rows(widths)
        kept = sum(map(len, widths.values()))
        if kept < count or len(rows) > most:
            fewest = ", the fewest that tell every unit" if len(rows) > most else ""
            self.notes.append(
                f"{kept} of {count} widths are tried{fewest}: timing all would take too long here. Where other work "
                "has the cores, a quieter machine finds better models"
            )
        self.space = SearchSpace(id=self.space.id, levels={**self.space.levels, **widths})
        nodes = int(np.clip(node_seconds / (build_s + 2 * LOAD_S + _NODE_RUNS * run_s), _LEAST_NODES, _MOST_NODES))
        # As many are drawn on every host: the policies that are drawn after them do not depend on its speed.
        self.profiled = random_rows(self.space, self.columns, _MOST_NODES, self.rng)[:nodes]
        for timer, block in self._blocks(self.profiled):
            self.kernels += self.journal.kernels(block, partial(timer.kernels, block))
        self.time(rows, SCAN)
        return self.prior(scans_only=True)

    def _scan_rows(self, widths: Mapping[str, Sequence[int]]) -> np.ndarray:
        return scanned_rows(self.space, self.varying, widths)

    def _cost(self) -> tuple[float, float]:
        """Seconds of one run of the dense model, and of building and loading one policy."""
        smallest = np.array([[codes[0] for codes in self.space.codes.values()]])
        start = self.timer.clock()
        timed = self.timer.time(smallest, "a first look", replace(self.protocol, repeats=3, retries=0))
        took, run_s = self.timer.clock() - start, timed.reference_ms / 1e3
        if self.timer.target.address:
            return run_s, LOAD_S  # copying a kit takes long even if it holds one model
        sample_s = max(run_s, self.protocol.sample_ms / 1e3) + run_s
        runs_s = 3 * (self.protocol.reference_samples + 1) * sample_s + 20 * run_s
        return run_s, max(LOAD_S, (took - runs_s) / 2)

    def prior(self, scans_only: bool = False) -> dict[Geometry, float]:
        """Geometries of the scans and (later) of every policy of the space, with their prior cost."""
        keys = scanned_geometries(self.varying, self.evidence.rows)
        if not scans_only:
            keys |= dict.fromkeys(possible_geometries(self.varying, self.space, self.columns))
        geometries = tuple(keys)
        numbers = GeometryIndex(self.varying, geometries).numbers(self.profiled)
        known_ms = profiled_ms(geometries, numbers, self.kernels, self.timer.dense_onnx, self.priced)
        return as_prior(geometries, prior_ms(geometries, known_ms))

    def useful(self, prior: Mapping[Geometry, float]) -> dict[str, tuple[int, ...]]:
        """Useful widths of every unit, and codes of treatments of every layer, from the scans alone."""
        geometries, values = tuple(prior), np.array([*prior.values()])
        index = GeometryIndex(self.varying, geometries)
        fitted = self.fit(index, geometries, values)
        predictor = predictor_of(index, self.space.codes, fitted, self.space.layer_names)
        useful = {stair.unit: stair.useful for stair in staircases(predictor, self.space, self.varying)}
        useful |= useful_treatments(predictor, self.space)
        return {name: useful.get(name, codes) for name, codes in self.space.codes.items()}

    def fit(self, index: GeometryIndex, geometries: Sequence[Geometry], prior_ms: np.ndarray) -> Fit:
        """The fit to the evidence so far."""
        return fit_evidence(
            self.timer.structure, index, geometries, self.evidence, prior_ms,
            dense_ms=self.dense_ms, noise=self.noise, runtime=self.timer.target.runtime,
        )  # fmt: skip

    def rounds(self, prior: Mapping[Geometry, float]) -> None:
        """Time policies that cover the entries, round by round, as `profile` says."""
        index = GeometryIndex(self.varying, tuple(prior))
        prior_values, geometries = np.array([*prior.values()]), tuple(prior)
        self.time(uniform_ladder(self.space), FIT)
        errors: list[float] = []
        until_error_stays = not self.space.layer_names
        for _ in range(MOST_ROUNDS):
            start = self.elapsed()
            seen = occurrences(index.numbers(self.evidence.rows[self.evidence.fitted()]), len(prior)).sum(axis=0)
            rows = covering_rows(self.space, self.columns, index, ROUND, seen, self.rng)
            # Before the round: its policies are new to this fit.
            fitted = self.fit(index, geometries, prior_values) if until_error_stays else None
            dense_ms = self.dense_ms
            self.time(rows, FIT)
            if fitted is not None:
                predicted = fitted.predict(occurrences(index.numbers(rows), len(prior)))
                measured = self.evidence.ratios[-len(rows) :] * dense_ms
                errors.append(float(np.abs(predicted / measured - 1).mean()))
                if len(errors) > 2 and min(errors[-2:]) > _GAIN * min(errors[:-2]):
                    break
            end_s = self.elapsed() + (self.elapsed() - start) * (1 + REMEASURED / ROUND)
            if self.journal.decided("late", lambda end_s=end_s: end_s > self.max_seconds):
                break


def scanned_geometries(varying: Sequence[PricedOperator], rows: np.ndarray) -> dict[Geometry, None]:
    """Every geometry that some of `rows` `[P, U + L]` holds, in a stable order."""
    return dict.fromkeys(geometry for op in varying for geometry in op.geometries(rows))


def as_prior(geometries: Sequence[Geometry], costs_ms: np.ndarray) -> dict[Geometry, float]:
    """Prior cost by geometry."""
    return dict(zip(geometries, map(float, costs_ms), strict=True))
