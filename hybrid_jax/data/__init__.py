"""Data: sources, decoding, the image store, splits, the order of batches, augmentation."""
