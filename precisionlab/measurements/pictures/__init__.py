"""What was measured, as pictures: each function draws on what it is given and returns it, and does nothing else."""

from precisionlab.measurements.pictures.controls import draw_ring, draw_theorem
from precisionlab.measurements.pictures.dimensions import draw_flat_directions, draw_loss_floor
from precisionlab.measurements.pictures.lattices import draw_census, draw_extents
from precisionlab.measurements.pictures.margins import draw_margins
from precisionlab.measurements.pictures.training import draw_spectra, draw_two_by_two, draw_unfreezing

__all__ = [
    "draw_census",
    "draw_extents",
    "draw_flat_directions",
    "draw_loss_floor",
    "draw_margins",
    "draw_ring",
    "draw_spectra",
    "draw_theorem",
    "draw_two_by_two",
    "draw_unfreezing",
]
