"""`Recipe`: how a model is trained, dense or pruned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from autoprune.errors import UsageError

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "one-cycle"]
Precision = Literal["fp32", "bf16", "auto"]

_CHOICES = {"optimizer": get_args(Optimizer), "schedule": get_args(Schedule), "precision": get_args(Precision)}
_RANGES = {
    "epochs": (0.0, math.inf),
    "batch_size": (2, math.inf),
    "lr": (0.0, math.inf),
    "weight_decay": (0.0, math.inf),
    "momentum": (0.0, 0.9999),
    "clip_norm": (0.0, math.inf),
    "label_smoothing": (0.0, 0.9999),
    "distill_weight": (0.0, 1.0),
    "temperature": (0.01, math.inf),
    "layer_weight": (0.0, math.inf),
    "accumulate": (1, math.inf),
    "ema": (0.0, 0.99999),
}

TERMS = ("l1", "l2", "growing", "clip", "group-lasso", "l0", "l0-units")
"""Changes of the weights in a training besides following the loss; each is written with its strength, `l1:0.001`."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained, dense or pruned.

    Raises:
        UsageError: a value is out of its range; the message names the field, the range and the value.

    Example:
        >>> import autoprune
        >>> recipe = autoprune.Recipe(optimizer="adamw", lr=1e-3, batch_size=32)
        >>> recipe.schedule, recipe.weight_decay
        ('cosine', 0.0005)
    """

    epochs: float | None = None
    """Passes over the training data: of the dense model (default: 4), or of the full fine-tune of a pruned one
    (default: what the effort of the search gives). The effort alone says how long the fine-tunings before that are."""
    batch_size: int = 128
    """Examples of a training step, at least 2."""
    optimizer: Optimizer = "sgd"
    """`sgd` with Nesterov momentum, or `adamw`."""
    lr: float = 0.05
    """Peak learning rate of a dense or narrow model; with zeros among the weights, times 1 / sqrt(density)."""
    schedule: Schedule = "cosine"
    """Learning rate over the training: `cosine` rises for 5 %, `one-cycle` for 25 %; both then fall to 0."""
    weight_decay: float = 5e-4
    """Decay of matrices and filters; biases and norms do not decay."""
    momentum: float = 0.9
    """Momentum of SGD, the first beta of AdamW."""
    clip_norm: float = 5.0
    """Largest norm of the gradient of a step; 0 clips nothing."""
    label_smoothing: float = 0.0
    """Used where the task's loss is `torch.nn.functional.cross_entropy`."""
    distill_weight: float = 0.9
    """Share of the distillation loss, when there is a teacher; the task's loss has the rest."""
    temperature: float = 4.0
    """Temperature of the distillation loss for class logits."""
    layer_weight: float = 0.0
    """Weight of what convolutions and linear layers write, compared with the same layers of the dense model, in full
    fine-tunes; it falls to 0 over the training. 5 helps short fine-tunes on many data, and harms others (see the
    decisions on repair and fine-tuning). Models that are trained as graphs compare no layers."""
    accumulate: int = 1
    """Batches whose gradients make one step of the optimizer."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is the result of the training; 0 keeps no average."""
    precision: Precision = "auto"
    """Number format of training: `fp32`, `bf16`, or `auto` for bf16 where the CPU has matrix units for it."""
    channels_last: bool = True
    """Store filters channels last, faster on CPUs; models that cannot run that way, or not safely, run contiguous."""
    terms: tuple[str, ...] = ()
    """Penalties and bounds with their strengths, which make weights zero or small: `l1:0.001`, `l2:0.001`,
    `growing:0.1` (L2 that grows), `clip:0.5`, `group-lasso:0.001` and `l0-units:0.001` (on channels), `l0:0.001`."""

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise UsageError(f"a recipe's {name} is one of {', '.join(known)}; got {getattr(self, name)!r}")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if name == "epochs" and value is None:
                continue
            if not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
                raise UsageError(f"a recipe's {name} must lie in [{low:g}, {high:g}]; got {value!r}")
        texts = (self.terms,) if isinstance(self.terms, str) else self.terms
        object.__setattr__(self, "terms", tuple(f"{name}:{strength:g}" for name, strength in map(parse_term, texts)))


def parse_term(text: str) -> tuple[str, float]:
    """Read a term of a recipe, such as `l1:0.001`.

    Returns:
        Its name and its strength.

    Raises:
        UsageError: the name is unknown, or the strength is no number above 0.
    """
    name, _, strength = str(text).partition(":")
    try:
        value = float(strength)
    except ValueError:
        value = math.nan
    if name not in TERMS or not 0 < value < math.inf:
        raise UsageError(
            f"a recipe's term is one of {', '.join(TERMS)} with a strength above 0, such as l1:0.001; got {text!r}"
        )
    return name, value


DEFAULT_TUNING = Recipe(batch_size=32, lr=0.02)
"""Trains pruned models of small convolutional nets well; a test finds a better one where a task gives none."""

DENSE_EPOCHS = 4.0
"""Epochs of the dense model where its recipe does not say."""
