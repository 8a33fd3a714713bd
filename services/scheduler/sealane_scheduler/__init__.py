"""The scheduler: places deployments and jobs, and says why."""
