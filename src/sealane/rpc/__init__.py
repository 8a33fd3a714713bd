"""Both ends of a call: status, channel, server, middleware, policy."""
