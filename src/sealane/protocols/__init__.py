"""Adapters between inference protocols and plain numpy arrays; pure, no network and no model."""
