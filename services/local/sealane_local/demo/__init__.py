"""The demo: two cameras, one cut cable."""
