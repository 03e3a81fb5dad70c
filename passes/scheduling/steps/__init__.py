"""Training steps of a finite batch on pipeline stages: orders of forward and backward cells on every rank."""
