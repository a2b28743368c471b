"""The transformer, its files, its tokenizer and the engine that generates."""
