"""The model: tokens, transformer blocks, heads, and the hybrid encoder-decoder."""
