"""Everything that touches Optuna: the study of a rung, its storage and its samplers."""
