"""Exact answers within limits: additive costs, the solver, uniform policies, promotion."""
