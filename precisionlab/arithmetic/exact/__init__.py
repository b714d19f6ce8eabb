"""Error-free transformations, and the five basic operations rounded exactly with them."""
