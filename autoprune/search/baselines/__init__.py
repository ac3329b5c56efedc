"""Published ways to choose widths, rewritten over the predictor, the channels and the proxy of the guided search.

They choose widths alone: which channels of a unit stay is up to the order of the run, whatever importance a strategy
goes by. Width 0 is a level like any other: it costs what a unit's removal was measured to lose, or all its importance.
"""
