"""Dense and pruned training: the loop, distillation, scoring."""
