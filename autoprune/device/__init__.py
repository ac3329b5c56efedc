"""The measured device: which target, how it is reached, and the timing protocol."""
