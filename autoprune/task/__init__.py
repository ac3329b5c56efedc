"""What to compress: the task, its data, the built-in tasks and loading a user's own."""
