"""Sums of many terms in a stated order, each partial sum rounded."""
