"""One peer in its own environment: prune to measured latencies, fine-tune, append rows. Run by `peers.py`.

A peer prunes to a share of what it counts (channels, parameters, FLOPs), not to a latency. A grid of shares is timed,
then the gap before the smallest share that fits a budget is bisected; the least pruned model that fits is taken. The
grid comes first because latency does not always fall with the share: widths off the runtime's blocks can be slower.

With int8, ONNX Runtime's own static quantization follows the pruning, per channel and calibrated on training data.
Files in int8 are timed against the dense one in fp32, and the file is scored after fine-tuning in fp32.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from curves import Row, append_row, curve, missing_points, read_rows
from peer_methods import METHODS, Peer
from torch import nn

from autoprune.budgets import most_of
from autoprune.device.connect import make_target
from autoprune.device.timing import Timings
from autoprune.evaluation.calibration_examples import CALIBRATION_EXAMPLES
from autoprune.export.onnx_file import OnnxModule, export_candidate
from autoprune.onnxgraph.quantization import quantized
from autoprune.pipeline.measurer import DeviceMeasurer
from autoprune.profiling.policy_timer import random_feeds
from autoprune.structure import analyze
from autoprune.task.base import Task
from autoprune.task.batches import batches, length, sample_rows
from autoprune.task.load import load_task
from autoprune.training.dense import load_dense

GRID = (*(step / 20 for step in range(1, 20)), 0.975, 0.99)
BISECTIONS = 4


@dataclass(frozen=True, kw_only=True)
class Order:
    """The job of a worker: one method on one model, for all budgets, seeds and points."""

    method: str
    task: str
    model: str | None
    data_dir: str | None
    dense: str
    budgets: list[str]
    points: list[int]
    seeds: list[int]
    out: str
    int8: bool = False

    def to_json(self) -> str:
        """The command-line argument of the worker."""
        return json.dumps(asdict(self))

    def missing(self, budget: str, seed: int) -> list[int]:
        """Points that the file of results lacks."""
        rows = read_rows(Path(self.out))
        return missing_points(rows, self.points, method=self.row_method, model=self.label, budget=budget, seed=seed)

    def begun(self, budget: str, seed: int) -> bool:
        """Whether there are rows already, so that the others must be of the same model."""
        rows = read_rows(Path(self.out))
        return any(row.answers(self.row_method, self.label, budget, seed) for row in rows)

    def share_file(self, budget: str, seed: int) -> Path:
        """File that keeps the share that meets a budget: timed again, another share might."""
        return Path(self.out).with_suffix("") / f"{self.row_method}-{self.label}-{budget}-{seed}.json"

    @property
    def row_method(self) -> str:
        """The method's name in the file of results."""
        return f"{self.method}-int8" if self.int8 else self.method

    @property
    def label(self) -> str:
        """The model's name in the file of results."""
        return self.model or self.task

    @property
    def finished(self) -> bool:
        """Whether nothing is missing."""
        return not any(self.missing(budget, seed) for budget in self.budgets for seed in self.seeds)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A pruned model, its ONNX file, and its latency relative to the dense model's."""

    share: float
    model: nn.Module
    onnx: Path
    ratio: float


class Stopwatch:
    """Times modules as ONNX files, interleaved with the dense one: ONNX Runtime on the CPU, 1 thread, batch 1."""

    def __init__(self, task: Task, dense: nn.Module, folder: Path, *, int8: bool) -> None:
        self._task = task
        self._int8 = int8
        self._folder = folder
        self._files = 0
        self._target = make_target("ort-cpu")
        self._feeds = random_feeds(analyze(dense, task.example_inputs), self._target.batch)
        self._dense = export_candidate(dense, task, folder / "dense.onnx")
        self._dense_ms = self._timed([self._dense]).reference_ms

    def limit(self, budget: str) -> float:
        """The latency ratio that a budget, relative or in milliseconds, allows."""
        return most_of("latency", budget, self._dense_ms) / self._dense_ms

    def export(self, model: nn.Module) -> Path:
        """The model as an ONNX file."""
        self._files += 1
        return exported(model, self._task, self._folder / f"{self._files}.onnx", int8=self._int8)

    def ratios(self, files: Sequence[Path]) -> tuple[float, ...]:
        """Latencies relative to the dense model's, as precise as those of a search's results."""
        return self._timed(files).ratios if files else ()

    def _timed(self, files: Sequence[Path]) -> Timings:
        return DeviceMeasurer(self._target).timings(files, self._dense, self._feeds)


class Ladder:
    """The models of one peer by share, with their latencies; shared by all budgets.

    Raises `RuntimeError` with the peer's last reason when it can prune to no share at all.
    """

    def __init__(self, peer: Peer, stopwatch: Stopwatch) -> None:
        self._peer = peer
        self._stopwatch = stopwatch
        self._probes: dict[float, Probe] = {}
        self._confirmed: set[float] = set()
        self._reason = ""
        self._try(GRID)
        if not self._probes:
            raise RuntimeError(f"no share can be pruned: {self._reason}")

    def fastest(self) -> Probe:
        """The model of the lowest latency."""
        return min(self._probes.values(), key=lambda probe: probe.ratio)

    def largest(self, limit: float) -> Probe | None:
        """The model with the least pruned whose latency ratio is at most `limit`, None if there is none.

        A model is taken only if it fits a second time: of many that are timed, the luckiest would be.
        """
        for _ in range(BISECTIONS if self._fitting(limit) else 0):
            high = self._fitting(limit)[0]
            low = max((share for share in self._probes if share < high), default=0.0)
            self._try([(low + high) / 2])
        while fitting := self._fitting(limit):
            probe = self._probes[fitting[0]]
            if probe.share in self._confirmed:
                return probe
            self._confirmed.add(probe.share)
            self._probes[probe.share] = replace(probe, ratio=self._stopwatch.ratios([probe.onnx])[0])
        return None

    def _fitting(self, limit: float) -> list[float]:
        return sorted(share for share, probe in self._probes.items() if probe.ratio <= limit)

    def _try(self, shares: Iterable[float]) -> None:
        """Add the shares that the peer can prune to, with a model that can be exported."""
        files: dict[float, tuple[nn.Module, Path]] = {}
        for share in shares:
            try:
                model = self._peer.prune(share)
                files[share] = model, self._stopwatch.export(model)
            except Exception as error:
                self._reason = one_line(error)
        ratios = self._stopwatch.ratios([file for _, file in files.values()])
        for (share, (model, file)), ratio in zip(files.items(), ratios, strict=True):
            self._probes[share] = Probe(share=share, model=model, onnx=file, ratio=ratio)


def one_line(error: BaseException) -> str:
    """Type and first line of an error."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def exported(model: nn.Module, task: Task, path: Path, *, int8: bool) -> Path:
    """Write a model as an ONNX file, in int8 by ONNX Runtime's static quantization where asked."""
    export_candidate(model, task, path)
    if int8:
        rows = sample_rows(length(task.train_set), CALIBRATION_EXAMPLES, seed=0)
        inputs = (task.split(batch)[0] for batch in batches(task.train_set, 1, rows=rows))
        file = quantized(path, *([x.numpy() for x in batch] for batch in inputs), per_channel=True)
        path.write_bytes(file.SerializeToString())
    return path


def as_file(model: nn.Module, task: Task) -> nn.Module:
    """Return the file in int8 of a model, as a module to score."""
    with tempfile.TemporaryDirectory() as folder:
        return OnnxModule(exported(model, task, Path(folder) / "tuned.onnx", int8=True))


def sizes(model: nn.Module, task: Task) -> tuple[int, int]:
    """Parameters and multiply-accumulates of a model, as counted for every other method."""
    structure = analyze(model, task.example_inputs)
    widths = structure.widths([structure.dense_policy()])
    return int(structure.params(widths)[0]), int(structure.macs(widths)[0])


def run(order: Order) -> None:
    """Append the rows that are missing; a seed that fails is reported in one line, and the next one follows."""
    torch.set_num_threads(1)
    task = load_task(order.task, order.model, Path(order.data_dir) if order.data_dir else None)
    dense = load_dense(task, Path(order.dense))
    for seed in order.seeds:
        try:
            wanted = [budget for budget in order.budgets if order.missing(budget, seed)]
            for budget in [budget for budget in wanted if order.begun(budget, seed)]:
                kept = json.loads(order.share_file(budget, seed).read_text())
                peer = METHODS[order.method](task, dense, seed)
                _append_curve(order, Row(**kept["row"]), peer.prune(kept["share"]), task, dense)
                wanted.remove(budget)
            if wanted:
                _search(order, task, dense, seed, wanted)
        except Exception as error:
            print(f"{order.method}, seed {seed} failed: {one_line(error)}", flush=True)


def _search(order: Order, task: Task, dense: nn.Module, seed: int, budgets: Sequence[str]) -> None:
    """Find the models of one seed for some budgets, and append their rows."""
    print(f"{order.method}, seed {seed}: preparing, then timing {len(GRID)} shares", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        stopwatch = Stopwatch(task, dense, Path(folder), int8=order.int8)
        start = time.perf_counter()
        peer = METHODS[order.method](task, dense, seed)
        ladder = Ladder(peer, stopwatch)
        prepared = time.perf_counter() - start
        for budget in budgets:
            start = time.perf_counter()
            largest = ladder.largest(stopwatch.limit(budget))
            probe = largest or ladder.fastest()
            params, macs = sizes(probe.model, task)
            row = Row(
                method=order.row_method,
                model=order.label,
                budget=budget,
                seed=seed,
                search_passes=round(peer.search_passes / len(order.budgets)),
                passes=0,
                test_score=None,
                latency_ratio=probe.ratio,
                params=params,
                macs=macs,
                seconds=prepared + time.perf_counter() - start,
            )
            if largest is None:
                _append(order, row)
                continue
            file = order.share_file(budget, seed)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"row": asdict(row), "share": probe.share}))
            _append_curve(order, row, probe.model, task, dense)


def _append_curve(order: Order, timed: Row, model: nn.Module, task: Task, dense: nn.Module) -> None:
    """Fine-tune and test at every missing point; each row is in the file before the next point begins."""
    relative_cost = timed.macs / sizes(dense, task)[1]
    for point in order.missing(timed.budget, timed.seed):
        start = time.perf_counter()
        [(_, score)] = curve(
            model, task, dense, relative_cost=relative_cost, points=[point], seed=timed.seed,
            deployed=(lambda tuned: as_file(tuned, task)) if order.int8 else (lambda tuned: tuned),
        )  # fmt: skip
        seconds = timed.seconds + time.perf_counter() - start
        _append(order, replace(timed, passes=point, test_score=score, seconds=seconds))


def _append(order: Order, row: Row) -> None:
    append_row(Path(order.out), row)
    reached = "cannot be met" if row.test_score is None else f"{row.passes:>7,} passes: test score {row.test_score:.4f}"
    cost = f"measured {row.latency_ratio:.1%} of dense, {row.macs:,} MACs"
    print(f"{row.method:20} {row.budget:>6} seed {row.seed} {reached} ({cost})", flush=True)


if __name__ == "__main__":
    run(Order(**json.loads(sys.argv[1])))
