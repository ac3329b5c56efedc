"""Zeros among the weights of a layer: how they are written, where they lie, and what a weight with them takes up."""
