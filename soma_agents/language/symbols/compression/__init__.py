"""Token streams made small and brought back: runs, patterns, frequencies, or a mixture of contexts."""
