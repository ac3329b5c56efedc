"""What repairs a pruned model: batch-norm recalibration, fine-tuning, distillation; and how it is scored."""
