"""What services keep: one database thread, outbox, audit trail, request ids. Needs the [server] extra."""
