"""Other programs' model files: layouts mapped into ours, and ours written as theirs."""
