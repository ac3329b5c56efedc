"""The task to compress: its model and data, the built-in tasks, and loading a user's own."""
