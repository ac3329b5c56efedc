"""After the search: measure candidates, fine-tune the best in full, verify, and take the next where one misses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from autoprune.allocation.promotion import best_within
from autoprune.errors import StructureError, TaskError, TrialError, VerificationError
from autoprune.executors.base import Executor
from autoprune.pipeline.events import Events
from autoprune.pipeline.prepare import Setup
from autoprune.pipeline.refit import measured_ratios, uniform_baselines
from autoprune.pipeline.verification import clock_notes, meets, verify_model, whole
from autoprune.records import Policy
from autoprune.runfolder import write_atomic
from autoprune.search.rung import run_rung
from autoprune.study.broker import Broker
from autoprune.study.spec import StudySpec
from autoprune.study.storage import storage_errors
from autoprune.trials import FrontModel, TrialResult, TrialSpec

_CANDIDATES = 4
_ROUNDS = 3
UNIFORM = "uniform"


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A policy that goes on to the full fine-tune for one budget; `strategy` is `uniform` for the baseline."""

    policy: Policy
    budget: str
    strategy: str


@dataclass
class _Candidates:
    """Candidates of one budget, best first, and how many the budget still misses."""

    waiting: list[Policy]
    missing: int


def finish(setup: Setup, rung: Sequence[TrialResult], executor: Executor, events: Events) -> list[FrontModel]:
    """Fine-tune the finalists of every budget and its uniform baseline in full, and verify them.

    `rung` holds the results of the dearest rung of the search. A candidate is measured before it is fine-tuned: one
    that misses its budget is reported and the next is taken; likewise one that misses it afterwards, whose fine-tune
    fails, or whose export computes something else.
    """
    uniform = uniform_baselines(setup)
    queues = _queues(setup, rung, set(uniform.values()))
    batch = [Finalist(policy=p, budget=b, strategy=UNIFORM) for b, p in uniform.items()]
    models: list[FrontModel] = []
    for _ in range(_ROUNDS):
        batch += _next(setup, queues, events)
        if not batch:
            break
        events.stage("Full fine-tune")
        results = _fine_tune(setup, {f.policy: f.strategy for f in batch}, executor, events)
        events.stage("Export and verification")
        for number, finalist in enumerate(batch):
            events.advance(number, len(batch), finalist.policy.digest())
            model = _verified(setup, finalist, results.get(finalist.policy), events)
            if model is not None:
                models.append(model)
            if finalist.strategy != UNIFORM and (model is None or not model.meets_budget):
                queues[finalist.budget].missing += 1
        batch = []
    for line in clock_notes(setup, models):
        events.note(line)
    return models


def _verified(setup: Setup, finalist: Finalist, result: TrialResult | None, events: Events) -> FrontModel | None:
    """Verify one fine-tuned policy; `None`, with a note, when there is nothing to keep."""
    reason = None if result is None or result.status == "done" else result.error or result.status
    if result is not None and result.undone:
        events.note(
            f"{finalist.policy.digest()}: fine-tuning lowered its validation score, so the repaired model is kept. "
            "Try a smaller rate in the task's finetune_recipe, or more passes"
        )
    if reason is None:
        try:
            model = verify_model(setup, finalist.policy, finalist.budget, finalist.strategy)
            events.note(_line(model))
            return model
        except (StructureError, VerificationError, TrialError, TaskError) as error:
            reason = str(error)
    events.note(f"{finalist.policy.digest()} ({finalist.strategy}, {finalist.budget}) is dropped: {reason}")
    return None


def _queues(setup: Setup, rung: Sequence[TrialResult], uniform: set[Policy]) -> dict[str, _Candidates]:
    """Candidates of every budget by loss. The uniform strategy has no others than the baselines."""
    others = [result for result in rung if result.policy not in uniform]
    queues = {}
    for budget, limit in setup.limits.items():
        best = [result.policy for result in best_within(others, limit, _CANDIDATES)]
        queues[budget] = _Candidates(waiting=best, missing=setup.effort.finalists if best else 0)
    return queues


def _next(setup: Setup, queues: Mapping[str, _Candidates], events: Events) -> list[Finalist]:
    """The next candidates that meet their budget when measured, as many as each budget still misses."""
    chosen = []
    for budget, queue in queues.items():
        while queue.missing and queue.waiting:
            policy = queue.waiting.pop(0)
            # A resumed run keeps what it accepted: a second measurement would differ by its noise.
            accepted = setup.folder.model(policy.digest()).weights.exists()
            ratio = None if accepted else float(measured_ratios(setup, [policy])[0])
            if ratio is None or meets(setup, budget, policy, ratio, tolerance=0.0):
                queue.missing -= 1
                chosen.append(Finalist(policy=policy, budget=budget, strategy=setup.config.strategy))
            else:
                events.note(
                    f"{policy.digest()} misses {budget} when measured ({ratio:.1%} of dense, "
                    f"predicted {setup.predict_ms(policy) / setup.table.dense_ms:.1%}); taking the next one"
                )
    return chosen


def _fine_tune(
    setup: Setup, policies: Mapping[Policy, str], executor: Executor, events: Events
) -> dict[Policy, TrialResult]:
    """Run the full fine-tunes; returns what became of every one."""
    study_spec = StudySpec(
        space=setup.space,
        fidelity=setup.effort.full,
        limits=tuple(setup.limits.values()),
        run_seed=setup.config.seed,
    )

    def keep(result: TrialResult) -> None:
        if result.weights is not None:
            write_atomic(setup.folder.model(result.policy.digest()).weights, result.weights)

    timeout_s = executor.timeout_s
    with (
        storage_errors(setup.place),
        closing(Broker(setup.place, study_spec, setup.costs, timeout_s=timeout_s, keep=keep)) as broker,
    ):
        broker.enqueue(policies)
        results = run_rung(broker, executor, study_spec.limits, "full", lambda p: events.advance(p.done, p.total))
    _restore(setup, [r for r in results if r.policy in policies and r.status == "done"], executor, keep)
    return {result.policy: result for result in results}


def _restore(
    setup: Setup, results: Sequence[TrialResult], executor: Executor, keep: Callable[[TrialResult], None]
) -> None:
    """Fine-tune again what is known, but whose weights are gone or torn: the same seed gives the same weights."""
    torn = [r for r in results if not whole(setup.folder.model(r.policy.digest()).weights)]
    for result in torn:
        executor.submit(
            TrialSpec(number=result.number, policy=result.policy, fidelity=result.fidelity, seed=result.seed)
        )
    for _ in torn:
        keep(executor.wait())


def _line(model: FrontModel) -> str:
    verdict = "meets" if model.meets_budget else "MISSES"
    return (
        f"{model.digest} ({model.strategy}) {verdict} {model.budget}: measured {model.latency_ratio:.1%} of dense, "
        f"score {model.score:.4f}, test {model.test_score:.4f}"
    )
