"""Fine-tuning by the user's own trainer: Lightning, the Trainer of transformers, or any loop."""

from __future__ import annotations

import torch
from torch import nn

from autoprune.errors import AutopruneError, TaskError, TrialError
from autoprune.model.acceptance import unwrap, users_line
from autoprune.model.randomness import seeded
from autoprune.task.base import Task
from autoprune.training.terms import Terms
from autoprune.training.watched_trainer import steps_told


def finetune_by_own_trainer(
    model: nn.Module, task: Task, *, samples: int, seed: int, terms: Terms | None = None
) -> None:
    """Let `task.finetune` train a model, and leave it in evaluation mode on the CPU with the trained weights.

    Args:
        model: the model to train.
        task: has the trainer.
        samples: training examples that the trainer sees.
        seed: of the trainer.
        terms: are told of every step of an optimizer that holds the model's parameters.

    Raises:
        TaskError: the trainer fails, or returns something else than the model or one with the same weights.
        TrialError: a trained weight is not finite.
    """
    assert task.finetune is not None
    told = terms or Terms(())
    try:
        with seeded(seed), torch.enable_grad(), steps_told(model, task, samples, told):
            trained = task.finetune(model.train(), samples, seed)
    except AutopruneError:
        raise
    except Exception as error:
        raise TaskError(
            f"finetune(model, samples, seed) failed: {type(error).__name__}: {error}{users_line(error)}"
        ) from error
    trained = model if trained is None else unwrap(trained)
    if isinstance(trained, nn.Module) and any(inner is model for inner in trained.modules()):
        trained = model  # inside a wrapper, such as a LightningModule
    if not isinstance(trained, nn.Module):
        raise TaskError(
            "finetune(model, samples, seed) must return the trained model, or None where it trains the model that it "
            f"is given; it returned {type(trained).__name__}"
        )
    if trained is not model:
        try:
            model.load_state_dict(trained.state_dict())
        except RuntimeError as error:
            raise TaskError(
                "finetune(model, samples, seed) must return a model with the weights of the one that it is given; "
                f"{str(error).splitlines()[-1].strip()}"
            ) from error
    model.to("cpu").eval()
    told.complete()
    told.finish()  # a trainer may have brought the weights of a copy
    for parameter in model.parameters():
        parameter.grad = None
        if not bool(parameter.isfinite().all()):
            raise TrialError("the weights must stay finite; the task's finetune made some that are not")
