"""Making and checking a latency table: which models to time, on this host or by a device kit."""
