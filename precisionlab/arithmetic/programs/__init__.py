"""Walking through a program of JAX: its equations, what holds programs of its own, and what nobody listed."""
