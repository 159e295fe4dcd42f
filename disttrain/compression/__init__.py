"""What travels instead of a gradient, and how the workers' payloads become one mean."""
