"""What this backend does to roundings: facts, canaries, its native arithmetic, a self-test."""
