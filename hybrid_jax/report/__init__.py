"""What a user sees of a run and of a data set: one HTML page, and a sheet of images."""
