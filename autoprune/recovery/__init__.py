"""Repair of pruned models without labels or gradients: least squares, channel order, batch norms."""
