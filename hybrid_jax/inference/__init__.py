"""A trained model in use: features, likelihoods, samples and completions, from a workdir alone."""
