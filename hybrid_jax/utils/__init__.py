"""Utilities: command line, runtime environment, image grids."""
