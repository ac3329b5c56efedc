"""Where trials run; every executor has the interface of `base.Executor`."""
