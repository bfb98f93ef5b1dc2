"""avg@k, maj@k and pass@k of a model, after training and in it."""
