"""Which policy is scored next: the controller, the strategies and what they learn from scores."""
