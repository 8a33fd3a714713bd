"""The registry: models, versions, variants, artifacts."""
