"""The gateway: takes inference calls of every protocol and forwards them over the workers' lanes."""
