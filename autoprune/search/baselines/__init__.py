"""Published ways to choose widths, rewritten over the predictor, the channels and the proxy of the guided search.

They choose widths alone: the order of the run decides which channels of a unit stay, also for a strategy with an
importance of its own. Width 0 is a level like any other: it costs what a unit's removal was measured to lose, or all
its importance.
"""
