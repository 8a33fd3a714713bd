"""The model process: everything that runs in a process of its own beside the worker front."""
