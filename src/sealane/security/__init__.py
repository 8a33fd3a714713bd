"""Tokens, proofs, certificates, sealed payloads."""
