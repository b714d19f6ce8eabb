"""How does training in one format compare with another: on digits, on bytes of text."""
