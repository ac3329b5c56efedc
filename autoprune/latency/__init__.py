"""Latency of a policy on a target: measured tables of operator geometries and the predictor built on them."""
