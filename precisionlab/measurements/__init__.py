"""One measurement, one file: what it does in arrays, and what two hypotheses predicted of it. `pictures` draws them."""
