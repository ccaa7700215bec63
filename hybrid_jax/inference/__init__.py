"""Inference with a trained model from its workdir: features, likelihoods, samples and completions."""
