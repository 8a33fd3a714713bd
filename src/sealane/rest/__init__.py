"""The HTTP forms of both protocols: what stands at which path, and how bodies and refusals are written."""
