"""TrainingDataExporter: from the log (`reading`) to examples (`examples`) to a dataset (`arbiter`)."""
