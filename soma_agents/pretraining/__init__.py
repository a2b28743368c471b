"""SOMA-LM from nothing: vocabulary, packed data, the learner, its loop, and what a run will cost."""
