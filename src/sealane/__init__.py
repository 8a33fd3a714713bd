"""Sealane: models from a laptop to cloud and edge machines, sealed end to end. The library."""
