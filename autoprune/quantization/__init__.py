"""Treated layers computed in PyTorch as the deployed file computes them: grids, ranges, rounding, and the twin."""
