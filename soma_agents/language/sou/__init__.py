"""`.sou`: one file that holds a whole model. The format is described in docs/sou-format.md."""
