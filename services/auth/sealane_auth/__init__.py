"""Auth: identities, tokens, keys, certificates."""
