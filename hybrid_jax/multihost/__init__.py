"""multihost."""
