"""Which policy next: samplers, latency repair, fidelity rungs, the broker that owns the study, and the executors."""
