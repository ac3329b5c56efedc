"""Budgets as they were asked for: a latency that a budget by score led to is told beside that budget."""

from __future__ import annotations

from collections.abc import Iterable

from autoprune.budgets import Budget, ScoreBudget, alternatives, parse_budget
from autoprune.errors import BudgetError


def asked_text(budgets: Iterable[str], budget: str | None) -> str:
    """Return the budget of a model as it was asked for; empty for none.

    Args:
        budgets: of the run, as they were given.
        budget: of the model: one of those, or a latency that the search for a score chose.

    Example:
        >>> asked_text(["50%", "score:-1%"], "50%"), asked_text(["50%", "score:-1%"], "35.4%")
        ('50%', 'score:-1% (35.4%)')
    """
    scores = score_asked(budgets, budget)
    return f"{scores} ({budget})" if scores else budget or ""


def score_asked(budgets: Iterable[str], budget: str | None) -> str:
    """Return the budgets by score that led to the budget of a model, joined by commas; empty where none did."""
    try:
        given = [parse_budget(text) for text in budgets]
    except BudgetError:  # of a file that was edited by hand
        return ""
    others = [each for each in given if isinstance(each, Budget)]
    if not budget or budget in {str(each) for each in (alternatives(others) if others else ())}:
        return ""
    return ", ".join(str(each) for each in given if isinstance(each, ScoreBudget))
