"""The whole suite on one machine, and the demo."""
