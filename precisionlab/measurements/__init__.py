"""One measurement, one file: what it does in arrays, what two hypotheses predicted of it, and a picture."""
