"""Images from disk to index order: sources, the image folder, and the stateless order of examples."""
