"""One peer in its own environment: prune to measured latencies, fine-tune, append rows. Run by `benchmark_peers.py`.

A peer prunes to a share of what it counts (channels, parameters, FLOPs), not to a latency. A grid of shares is timed,
then the gap before the smallest share that fits a budget is bisected; the least pruned model that fits is taken. The
grid comes first because latency does not always fall with the share: widths off the runtime's blocks can be slower.
"""

from __future__ import annotations

import copy
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from curves import Row, append_row, curve, missing_points, read_rows
from torch import nn

from autoprune.budgets import latency_limit_ms
from autoprune.errors import UsageError
from autoprune.export.onnx_file import export_candidate
from autoprune.export.verify import measure
from autoprune.latency.bench import random_feeds
from autoprune.latency.target import make_target
from autoprune.latency.timing import Timings
from autoprune.recovery.dense import load_dense
from autoprune.recovery.evaluate import evaluate
from autoprune.recovery.passes import SamplePasses
from autoprune.structure import analyze
from autoprune.task.base import Task
from autoprune.task.batches import batches, length, sample_rows
from autoprune.task.load import load_task

GRID = (*(step / 20 for step in range(1, 20)), 0.975, 0.99)
BISECTIONS = 4
GRADIENT_BATCHES, GRADIENT_BATCH_SIZE = 10, 64
CALIBRATION_BATCHES, CALIBRATION_BATCH_SIZE = 50, 16
"""FastNAS recalibrates batch norms before every score; it wants 50 batches, so they are small."""
SCORE_EXAMPLES = 1_000
FAST_STEP = 4
"""ONNX Runtime runs multiples of it fast. FastNAS's own step is 32, which leaves a net of 16 to 64 channels whole."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a worker does: one method on one model, for all budgets, seeds and points."""

    method: str
    task: str
    model: str | None
    data_dir: str | None
    dense: str
    budgets: list[str]
    points: list[int]
    seeds: list[int]
    out: str

    def to_json(self) -> str:
        """The command-line argument of the worker."""
        return json.dumps(asdict(self))

    def missing(self, budget: str, seed: int) -> list[int]:
        """Points that the file of results lacks."""
        rows = read_rows(Path(self.out))
        return missing_points(rows, self.points, method=self.method, model=self.label, budget=budget, seed=seed)

    def begun(self, budget: str, seed: int) -> bool:
        """Whether there are rows already, so that the others must be of the same model."""
        rows = read_rows(Path(self.out))
        return any(row.answers(self.method, self.label, budget, seed) for row in rows)

    def model_file(self, budget: str, seed: int) -> Path:
        """Where the model that was found is kept: timed again, another one might fit."""
        return Path(self.out).with_suffix("") / f"{self.method}-{self.label}-{budget}-{seed}.pt"

    @property
    def label(self) -> str:
        """The model's name in the file of results."""
        return self.model or self.task

    @property
    def finished(self) -> bool:
        """Whether nothing is missing."""
        return not any(self.missing(budget, seed) for budget in self.budgets for seed in self.seeds)


class Peer(Protocol):
    """A pruning method with its preparation done: gradients taken, sensitivities measured."""

    @property
    def search_passes(self) -> int:
        """Sample passes of the preparation, which serves all budgets."""
        ...

    def prune(self, share: float) -> nn.Module:
        """A new model with `share` (0 to 1) of what the method counts removed."""
        ...


class TorchPruning:
    """Torch-Pruning: one global threshold over the scores of all channels, or one for every kind of layer.

    `round_to` makes widths multiples of it, as someone does who knows which ones the runtime runs fast.
    """

    def __init__(
        self,
        task: Task,
        dense: nn.Module,
        seed: int,
        *,
        score: str,
        isomorphic: bool = False,
        round_to: int | None = None,
    ) -> None:
        self._library: Any = import_module("torch_pruning")
        self._task = task
        self._dense = dense
        self._isomorphic = isomorphic
        self._round_to = round_to
        self._score = score
        passes = SamplePasses()
        self._gradients = _gradients(task, dense, seed, passes) if score == "GroupTaylorImportance" else {}
        self.search_passes = round(passes.total)

    def prune(self, share: float) -> nn.Module:
        """As `Peer`; `share` is of the channels."""
        model = copy.deepcopy(self._dense)
        for name, parameter in model.named_parameters():
            parameter.grad = self._gradients.get(name)
        self._library.pruner.BasePruner(
            model,
            self._task.example_inputs,
            importance=getattr(self._library.importance, self._score)(),
            global_pruning=True,
            isomorphic=self._isomorphic,
            pruning_ratio=share,
            round_to=self._round_to,
            ignored_layers=_classifiers(model, self._task),
            # Its defaults are dictionaries that all pruners of a process share.
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
        ).step()
        model.zero_grad()
        return model


class FastNas:
    """ModelOpt's FastNAS: widths by one threshold on what every layer alone costs in validation score.

    `limit` is the cost that it constrains, `params` or `flops`. The sensitivities are measured once and kept in a file
    for all shares, so only they count. Every forward pass counts like one of the dense model: an upper bound.
    """

    def __init__(self, task: Task, dense: nn.Module, seed: int, *, limit: str) -> None:
        self._library: Any = import_module("modelopt.torch.prune")
        self._task = task
        self._dense = dense
        self._limit = limit
        rows = sample_rows(length(task.train_set), CALIBRATION_BATCHES * CALIBRATION_BATCH_SIZE, seed=seed)
        self._inputs = [task.split(batch)[0] for batch in batches(task.train_set, CALIBRATION_BATCH_SIZE, rows=rows)]
        self._folder = tempfile.TemporaryDirectory()
        self._examples = 0
        self.prune(0.0)
        passes = SamplePasses()
        passes.forward(self._examples)
        self.search_passes = round(passes.total)

    def prune(self, share: float) -> nn.Module:
        """As `Peer`; `share` is of the parameters or FLOPs."""
        model = copy.deepcopy(self._dense)
        counter = model.register_forward_pre_hook(self._count)
        search = {
            "score_func": self._validation_score,
            "data_loader": self._inputs,
            "collect_func": lambda inputs: inputs,
            "checkpoint": str(Path(self._folder.name) / "sensitivities.pth"),
            "verbose": False,
        }
        constraints = {self._limit: f"{100 * (1 - share):g}%"}
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            found, _ = self._library.prune(
                model, [("fastnas", self._space())], constraints, self._task.example_inputs, config=search
            )
        counter.remove()
        return found

    def _space(self) -> Mapping[str, Any]:
        space = self._library.fastnas.FastNASConfig()
        for kind in space:
            for rule in (space[kind] or {}).values():
                for name in ("channel_divisor", "feature_divisor"):
                    if rule and name in rule:
                        rule[name] = FAST_STEP
        return space

    def _validation_score(self, model: nn.Module) -> float:
        return evaluate(model, self._task, self._task.val_set, limit=SCORE_EXAMPLES).score

    def _count(self, _model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._examples += len(inputs[0])


_TAYLOR = partial(TorchPruning, score="GroupTaylorImportance")
_MAGNITUDE = partial(TorchPruning, score="GroupMagnitudeImportance")
METHODS: Mapping[str, Callable[[Task, nn.Module, int], Peer]] = {
    "tp-taylor": _TAYLOR,
    "tp-magnitude": _MAGNITUDE,
    "tp-isomorphic": partial(_TAYLOR, isomorphic=True),
    "tp-taylor-round4": partial(_TAYLOR, round_to=FAST_STEP),
    "tp-magnitude-round4": partial(_MAGNITUDE, round_to=FAST_STEP),
    "tp-isomorphic-round4": partial(_TAYLOR, isomorphic=True, round_to=FAST_STEP),
    "fastnas-params": partial(FastNas, limit="params"),
    "fastnas-flops": partial(FastNas, limit="flops"),
}


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A pruned model, its ONNX file, and its latency relative to the dense model's."""

    share: float
    model: nn.Module
    onnx: Path
    ratio: float


class Stopwatch:
    """Times modules as ONNX files, interleaved with the dense one: ONNX Runtime on the CPU, 1 thread, batch 1."""

    def __init__(self, task: Task, dense: nn.Module, folder: Path) -> None:
        self._task = task
        self._folder = folder
        self._files = 0
        self._target = make_target("ort-cpu")
        self._feeds = random_feeds(analyze(dense, task.example_inputs), self._target.batch)
        self._dense = export_candidate(dense, task, folder / "dense.onnx")
        self._dense_ms = self._timed([self._dense]).reference_ms

    def limit(self, budget: str) -> float:
        """The latency ratio that a budget, relative or in milliseconds, allows."""
        return latency_limit_ms(budget, self._dense_ms) / self._dense_ms

    def export(self, model: nn.Module) -> Path:
        """The model as an ONNX file."""
        self._files += 1
        return export_candidate(model, self._task, self._folder / f"{self._files}.onnx")

    def ratios(self, files: Sequence[Path]) -> tuple[float, ...]:
        """Latencies relative to the dense model's, as precise as those of a search's results."""
        return self._timed(files).ratios if files else ()

    def _timed(self, files: Sequence[Path]) -> Timings:
        return measure(files, self._dense, self._target, self._feeds)


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
        found: dict[float, tuple[nn.Module, Path]] = {}
        for share in shares:
            try:
                model = self._peer.prune(share)
                found[share] = model, self._stopwatch.export(model)
            except Exception as error:
                self._reason = one_line(error)
        ratios = self._stopwatch.ratios([file for _, file in found.values()])
        for (share, (model, file)), ratio in zip(found.items(), ratios, strict=True):
            self._probes[share] = Probe(share=share, model=model, onnx=file, ratio=ratio)


def one_line(error: BaseException) -> str:
    """Type and first line of an error."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


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
                row, model = torch.load(order.model_file(budget, seed), weights_only=False)
                _append_curve(order, row, model, task, dense)
                wanted.remove(budget)
            if wanted:
                _search(order, task, dense, seed, wanted)
        except Exception as error:
            print(f"{order.method}, seed {seed} failed: {one_line(error)}", flush=True)


def _search(order: Order, task: Task, dense: nn.Module, seed: int, budgets: Sequence[str]) -> None:
    """Find the models of one seed for some budgets, and append their rows."""
    print(f"{order.method}, seed {seed}: preparing, then timing {len(GRID)} shares", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        stopwatch = Stopwatch(task, dense, Path(folder))
        start = time.perf_counter()
        peer = METHODS[order.method](task, dense, seed)
        ladder = Ladder(peer, stopwatch)
        prepared = time.perf_counter() - start
        for budget in budgets:
            start = time.perf_counter()
            found = ladder.largest(stopwatch.limit(budget))
            probe = found or ladder.fastest()
            params, macs = sizes(probe.model, task)
            row = Row(
                method=order.method,
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
            if found is None:
                _append(order, row)
                continue
            file = order.model_file(budget, seed)
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save((row, probe.model), file)
            _append_curve(order, row, probe.model, task, dense)


def _append_curve(order: Order, found: Row, model: nn.Module, task: Task, dense: nn.Module) -> None:
    """Fine-tune and test at every missing point; each row is in the file before the next point begins."""
    relative_cost = found.macs / sizes(dense, task)[1]
    for point in order.missing(found.budget, found.seed):
        start = time.perf_counter()
        [(_, score)] = curve(model, task, dense, relative_cost=relative_cost, points=[point], seed=found.seed)
        seconds = found.seconds + time.perf_counter() - start
        _append(order, replace(found, passes=point, test_score=score, seconds=seconds))


def _append(order: Order, row: Row) -> None:
    append_row(Path(order.out), row)
    reached = "cannot be met" if row.test_score is None else f"{row.passes:>7,} passes: test score {row.test_score:.4f}"
    cost = f"measured {row.latency_ratio:.1%} of dense, {row.macs:,} MACs"
    print(f"{row.method:20} {row.budget:>6} seed {row.seed} {reached} ({cost})", flush=True)


def _gradients(task: Task, dense: nn.Module, seed: int, passes: SamplePasses) -> dict[str, torch.Tensor]:
    """Gradients of the task's loss by parameter name, summed over batches of training data."""
    if task.loss is None:
        raise UsageError(f"Taylor scores need a loss; task {task.name!r} has none")
    model = copy.deepcopy(dense)
    rows = sample_rows(length(task.train_set), GRADIENT_BATCHES * GRADIENT_BATCH_SIZE, seed=seed)
    for batch in batches(task.train_set, GRADIENT_BATCH_SIZE, rows=rows):
        inputs, targets = task.split(batch)
        assert targets is not None
        task.loss(model(*inputs), targets).backward()
        passes.training(len(targets))
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _classifiers(model: nn.Module, task: Task) -> list[nn.Module]:
    """Linear layers as wide as the model's output: it must keep its classes."""
    with torch.no_grad():
        width = model(*task.example_inputs).shape[-1]
    return [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == width]


if __name__ == "__main__":
    run(Order(**json.loads(sys.argv[1])))
