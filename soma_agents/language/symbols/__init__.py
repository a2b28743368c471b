"""Symbols: text cut into tokens nine ways, an identity for every token, compressed streams."""
