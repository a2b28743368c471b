"""What a person states about themselves (`statements`), and how it is asked for (`questions`)."""
