"""Speed as claims: each benchmark prints a table of ratios against a named floor or peer, measured within one run."""
