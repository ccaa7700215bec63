"""Image sets that tfds has prepared, read without TensorFlow."""
