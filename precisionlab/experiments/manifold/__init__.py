"""Does the flat manifold of minima come from geometry or from the format: measurements, pictures, and the decision."""
