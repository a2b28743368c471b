"""From a dataset to an adapter: corpus, losses, loop, Ray Train, checkpoints."""
