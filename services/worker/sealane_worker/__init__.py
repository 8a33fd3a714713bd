"""The worker: pulls models, runs each in a process of its own, serves them through its front and its lanes."""
