"""Test score as a curve over sample passes after the search, and the CSV file that all compared methods share.

One sample pass is a forward and a backward pass of the dense model for one example (`training.sample_passes`).
"""

from __future__ import annotations

import copy
import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

from torch import nn

from autoprune.recovery.batchnorm import recalibrate
from autoprune.task.base import Task
from autoprune.training.batch_schedule import repeats_per_batch
from autoprune.training.finetune import finetune
from autoprune.training.scoring import evaluate, predict_outputs
from autoprune.trials import FORWARD_SHARE


@dataclass(frozen=True, kw_only=True)
class Row:
    """One point of one method's curve, a line of the CSV file.

    `search_passes` is what finding the model cost (of a search for several budgets, its share), `passes` what
    fine-tuning it after that may cost; both are sample passes. `seconds` is the clock time of the whole search that
    chose the model, and of this point's fine-tuning and test.
    `latency_ratio` is relative to the dense model. A budget that the method cannot meet has one row without a
    `test_score`, with `passes` 0 and the sizes and the latency of the fastest model that it reached.
    """

    method: str
    model: str
    budget: str
    seed: int
    search_passes: int
    passes: int
    test_score: float | None
    latency_ratio: float
    params: int
    macs: int
    seconds: float

    def answers(self, method: str, model: str, budget: str, seed: int) -> bool:
        """Whether the row is of this method, model, budget and seed."""
        return (self.method, self.model, self.budget, self.seed) == (method, model, budget, seed)


def curve(
    model: nn.Module,
    task: Task,
    dense: nn.Module,
    *,
    relative_cost: float,
    points: Sequence[int],
    seed: int,
    deployed: Callable[[nn.Module], nn.Module] = lambda tuned: tuned,
    train: Callable[[nn.Module, int], object] | None = None,
) -> list[tuple[int, float]]:
    """Test score after every number of sample passes in `points`, each from the same start; (point, score) pairs.

    The start is `model` with its batch norms recalibrated, which is free for every method; point 0 is the start itself.
    Fine-tuning is the task's, with `dense` as the teacher, or `train(model, examples)`, in place. `relative_cost` is
    the model's MACs relative to the dense model's; `deployed` gives the model that is scored, such as the twin with
    int8 layers. Nothing is changed but the memory layout of `dense`, which is put back.
    """
    plain = partial(finetune, task=task, seed=seed, teacher=dense, relative_cost=relative_cost)
    start = copy.deepcopy(model)
    recalibrate(start, task)
    scores = []
    for point in points:
        tuned = copy.deepcopy(start)
        if point > 0:
            examples = samples_for(point, relative_cost, task.tuning_recipe.batch_size)
            train(tuned, examples) if train is not None else plain(tuned, samples=examples)
        scores.append((point, score_on_test(deployed(tuned), task, dense)))
    return scores


def samples_for(passes: int, relative_cost: float, batch_size: int) -> int:
    """How many examples `passes` sample passes pay for, at least one batch, repeated ones included.

    Each costs a forward and a backward pass of a model of `relative_cost`, and a forward pass of the dense teacher when
    it is shown for the first time.
    """
    repeats = repeats_per_batch(relative_cost)
    return repeats * max(batch_size, math.floor(passes / (repeats * relative_cost + FORWARD_SHARE)))


def score_on_test(model: nn.Module, task: Task, dense: nn.Module) -> float:
    """The task's metric on its whole test set."""
    by_closeness = task.metric is None and not task.classifies
    outputs = predict_outputs(dense, task, task.test_set) if by_closeness else None
    return evaluate(model, task, task.test_set, dense_outputs=outputs).score


def missing_points(
    rows: Iterable[Row], points: Sequence[int], *, method: str, model: str, budget: str, seed: int
) -> list[int]:
    """The points that have no row yet; none when a row says that the budget cannot be met."""
    mine = [row for row in rows if row.answers(method, model, budget, seed)]
    if any(row.test_score is None for row in mine):
        return []
    there = {row.passes for row in mine}
    return [point for point in points if point not in there]


def append_row(path: Path, row: Row) -> None:
    """Add a line to the CSV file, which is made with its header if absent; the file is closed when this returns."""
    drop_torn_line(path)
    with path.open("a", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, [field.name for field in fields(Row)], lineterminator="\n")
        if out.tell() == 0:
            writer.writeheader()
        writer.writerow({name: _text(value) for name, value in asdict(row).items()})


def read_rows(path: Path) -> list[Row]:
    """All rows of the CSV file, none if it is absent; a last line that an interruption cut off is left out."""
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [_row(line) for line in csv.DictReader(whole.splitlines())]


def _row(line: dict[str, str]) -> Row:
    return Row(
        method=line["method"],
        model=line["model"],
        budget=line["budget"],
        seed=int(line["seed"]),
        search_passes=int(line["search_passes"]),
        passes=int(line["passes"]),
        test_score=float(line["test_score"]) if line["test_score"] else None,
        latency_ratio=float(line["latency_ratio"]),
        params=int(line["params"]),
        macs=int(line["macs"]),
        seconds=float(line["seconds"]),
    )


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def drop_torn_line(path: Path) -> None:
    """Cut off a last line without an end, which an interruption left."""
    content = path.read_bytes() if path.exists() else b""
    if not content.endswith(b"\n"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content[: content.rfind(b"\n") + 1])
