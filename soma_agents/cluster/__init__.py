"""The bus, the arbiters and the deployments as Ray actors."""
