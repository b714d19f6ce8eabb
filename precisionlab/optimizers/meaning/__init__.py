"""The optimizer's own program, run again: what it meant before anything was stored narrow."""
