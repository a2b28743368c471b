"""Vectors for tokens and texts, with no pretrained model."""
