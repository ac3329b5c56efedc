"""The errors that autoprune raises on purpose.

Each message states the rule, the value that breaks it, and the remedy. The command line prints the message alone and
exits with code 2; from Python, `except AutopruneError` catches them all.

    AutopruneError
    ├── UsageError (also ValueError)      a name, budget, option or value that cannot be used
    │   ├── ConfigError                   a configuration or search-space file with a wrong key, value or syntax
    │   ├── BudgetError                   a budget that cannot be read, or that no policy can meet
    │   └── PolicyError                   a policy that does not belong to its space or its model
    ├── TaskError                         a task that lacks a field, data that is absent or not finite
    ├── StructureError                    a model that cannot be traced or pruned
    │   └── ProofError                    a shrunk model that does not compute what the dense model computes
    ├── LatencyError                      a measurement that cannot be trusted or a table that cannot answer
    │   ├── MissingEntryError             an operator geometry that the table was not profiled for
    │   └── KitError                      a kit, or a device's result, that is cut off, changed or not to be believed
    ├── RunFolderError                    a run folder of another task, schema or owner, or one that cannot be written
    ├── TrialError                        one policy whose evaluation failed (the search goes on)
    ├── VerificationError                 an exported model that differs from the PyTorch model
    └── CallbackError                     a function or tracker of the caller that failed while it watched a search
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AutopruneError(Exception):
    """Base of all errors that are meant for the user.

    Example:
        >>> import autoprune
        >>> from autoprune.budgets import Budget
        >>> try:
        ...     Budget.parse("fast")
        ... except autoprune.AutopruneError as error:
        ...     print(error)
        a budget is a share of the dense model or an amount, above 0; got 'fast'. Write `50%` or `1.2ms`, ...
    """


class UsageError(AutopruneError, ValueError):
    """A name, option or value that cannot be used."""


class ConfigError(UsageError):
    """A configuration or search-space file with a wrong key, value or syntax."""


class BudgetError(UsageError):
    """A budget that cannot be read, or that no policy can meet."""


class TaskError(AutopruneError):
    """A task that lacks a field, or data that is absent or not finite."""


class StructureError(AutopruneError):
    """A model that cannot be traced or pruned."""


class ProofError(StructureError):
    """A shrunk model that does not compute what the dense model computes."""


class PolicyError(UsageError):
    """A policy that does not belong to its space or its model."""


class LatencyError(AutopruneError):
    """A measurement that cannot be trusted, or a table that cannot answer."""


class MissingEntryError(LatencyError):
    """An operator geometry that the table was not profiled for."""


class KitError(LatencyError):
    """A kit, or a device's result, that is cut off, changed or not to be believed."""


class RunFolderError(AutopruneError):
    """A run folder of another task, schema or owner, or one that cannot be written."""


class TrialError(AutopruneError):
    """One policy whose evaluation failed; the search records it and goes on."""


class VerificationError(AutopruneError):
    """An exported model that differs from the PyTorch model."""


class CallbackError(AutopruneError):
    """A function or tracker of the caller that failed while it watched a search."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Build the error for a name that is not in a closed list; its message has the nearest name and all known ones.

    Args:
        kind: what the name stands for, such as `strategy`.
        name: the name that was given.
        known: the names that would have been accepted.

    Example:
        >>> print(unknown_name("effort", "smal", ["small", "medium", "large"]))
        unknown effort 'smal'. Did you mean 'small'? Known: large, medium, small.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UsageError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")
