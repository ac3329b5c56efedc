"""After the search: measure candidates, fine-tune the best in full, verify, and take the next where one misses."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from autoprune.allocation.promotion import best_within
from autoprune.budgets import Limit
from autoprune.errors import StructureError, TaskError, TrialError, VerificationError
from autoprune.executors.base import Executor
from autoprune.manifest import Manifest
from autoprune.pipeline.baselines import UNIFORM, all_uniform_baselines, shared_out_zeros
from autoprune.pipeline.cost_model import CostModel
from autoprune.pipeline.deployment import Deployment
from autoprune.pipeline.events import FULL, VERIFICATION, Events
from autoprune.pipeline.progress import FullWatcher
from autoprune.pipeline.time_limit import allows
from autoprune.pipeline.verification import clock_notes, metrics_of, verify_model, whole
from autoprune.records import Policy
from autoprune.runfolder import RunFolder
from autoprune.search.explore import Search
from autoprune.search.rung import run_rung
from autoprune.study.spec import StudySpec
from autoprune.study.storage import storage_errors
from autoprune.trials import BASELINES, FrontModel, TrialResult, TrialSpec

_CANDIDATES = 8
_ROUNDS = 3


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


def finish(
    plan: Search,
    rung: Sequence[TrialResult],
    costs: CostModel,
    deployment: Deployment,
    executor: Executor,
    events: Events,
) -> list[FrontModel]:
    """Fine-tune the finalists of every budget and its uniform baselines in full, and verify them.

    A candidate is measured before it is fine-tuned: one that misses its budget is reported and the next is taken;
    likewise one that misses it afterwards, whose fine-tune fails, or whose export computes something else.

    Args:
        plan: the search.
        rung: results of its dearest rung.
        costs: predicts latencies and judges budgets.
        deployment: exports and measures.
        executor: runs the fine-tunes.
        events: receives every decision.
    """
    uniform = all_uniform_baselines(plan, costs)
    queues = _queues(plan, rung, costs, {policy for _, policy in uniform})
    batch = [Finalist(policy=policy, budget=budget, strategy=UNIFORM) for budget, policy in uniform]
    shared_out = shared_out_zeros(plan.space, costs, deployment.dense_model.module)
    batch += [Finalist(policy=p, budget=b, strategy=s) for b, s, p in shared_out if (b, p) not in uniform]
    models: list[FrontModel] = []
    begun_s = time.monotonic()
    for number in range(_ROUNDS):
        if number and not allows(events, time.monotonic() - begun_s):
            events.note("there is no time for further candidates")
            break
        batch += _next(plan.strategy, queues, costs, deployment, events)
        if not batch:
            break
        events.stage(FULL)
        policies = {f.policy: f.strategy for f in batch}
        results = _fine_tune(plan, policies, costs.limits, deployment.folder, executor, events)
        events.stage(VERIFICATION)
        for number, finalist in enumerate(batch):
            events.advance(number, len(batch), finalist.policy.digest())
            model = _verified(finalist, results.get(finalist.policy), costs, deployment, events)
            if model is not None:
                models.append(model)
            if finalist.strategy not in BASELINES and (model is None or not model.meets_budget):
                queues[finalist.budget].missing += 1
        batch = []
    for line in clock_notes(list(costs.limits), costs.dense_ms, metrics_of(deployment.folder, models)):
        events.note(line)
    return models


def _verified(
    finalist: Finalist, result: TrialResult | None, costs: CostModel, deployment: Deployment, events: Events
) -> FrontModel | None:
    """Verify one fine-tuned policy; `None`, with a note, when it is dropped."""
    digest = finalist.policy.digest()
    reason = None if result is None or result.status == "done" else result.error or result.status
    if result is not None and result.undone:
        events.note(
            f"{digest}: fine-tuning lowered its validation score, so the repaired model is kept. "
            "Try a smaller rate in the task's finetune_recipe, or more passes"
        )
    if reason is None:
        try:
            model = verify_model(finalist.policy, finalist.budget, finalist.strategy, costs, deployment)
            events.note(_line(model))
            return model
        except (StructureError, VerificationError, TrialError, TaskError) as error:
            reason = str(error)
    events.note(f"{digest} ({finalist.strategy}, {finalist.budget}) is dropped: {reason}")
    return None


def _queues(
    plan: Search, rung: Sequence[TrialResult], costs: CostModel, uniform: set[Policy]
) -> dict[str, _Candidates]:
    """Return the candidates of every budget by loss. The uniform strategy has no others than the baselines."""
    others = [result for result in rung if result.policy not in uniform]
    queues = {}
    for budget, limit in costs.limits.items():
        best = [result.policy for result in best_within(others, limit, _CANDIDATES)]
        queues[budget] = _Candidates(waiting=best, missing=plan.effort.finalists if best else 0)
    return queues


def _next(
    strategy: str, queues: Mapping[str, _Candidates], costs: CostModel, deployment: Deployment, events: Events
) -> list[Finalist]:
    """Return the next candidates that meet their budget when measured, as many as each budget still misses."""
    chosen = []
    for budget, queue in queues.items():
        while queue.missing and queue.waiting:
            policy = queue.waiting.pop(0)
            # A resumed run keeps the candidates that it accepted: a second measurement would differ by its noise.
            accepted = deployment.folder.model(policy.digest()).weights.exists()
            ratio = None if accepted else float(deployment.ratios([policy], costs)[0])
            if ratio is None or costs.meets(budget, policy, ratio, tolerance=0.0):
                queue.missing -= 1
                chosen.append(Finalist(policy=policy, budget=budget, strategy=strategy))
            else:
                (predicted,) = costs.predicted_ratios([policy])
                events.note(
                    f"{policy.digest()} misses {budget} when measured ({ratio:.1%} of dense, "
                    f"predicted {predicted:.1%}); taking the next one"
                )
    return chosen


def _fine_tune(
    plan: Search,
    policies: Mapping[Policy, str],
    limits: Mapping[str, Limit],
    folder: RunFolder,
    executor: Executor,
    events: Events,
) -> dict[Policy, TrialResult]:
    """Run the full fine-tunes, and return the result of every policy."""
    spec = StudySpec(space=plan.space, fidelity=plan.effort.full, limits=plan.limits, run_seed=plan.run_seed)

    def keep(result: TrialResult) -> None:
        if result.weights is not None:
            path = folder.model(result.policy.digest()).weights
            Manifest(folder).write(path, result.weights, sources=[folder.dense, folder.order])

    with (
        storage_errors(plan.location),
        closing(plan.open_broker(spec, timeout_s=executor.timeout_s, keep=keep)) as broker,
    ):
        broker.enqueue(policies)
        events.advance(0, len(policies))
        results = run_rung(broker, executor, spec.limits, "full", FullWatcher(limits, events))
    done = [r for r in results if r.policy in policies and r.status == "done"]
    _restore([r for r in done if not whole(folder.model(r.policy.digest()).weights)], executor, keep)
    return {result.policy: result for result in results}


def _restore(torn: Sequence[TrialResult], executor: Executor, keep: Callable[[TrialResult], None]) -> None:
    """Fine-tune again the policies whose weights are gone or torn: the same seed gives the same weights."""
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
