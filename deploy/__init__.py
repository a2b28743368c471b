"""Set-up, deployment files and what generates them."""
