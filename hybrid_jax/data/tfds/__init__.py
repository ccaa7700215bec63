"""Prepared TensorFlow Datasets (tfds), read without TensorFlow."""
