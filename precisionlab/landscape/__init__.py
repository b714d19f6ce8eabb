"""The geometry of minima, in float64: spectra, null spaces, walks along the manifold, and what a lattice makes of them."""

from precisionlab.landscape.charts import Cells, Chart, chart
from precisionlab.landscape.densities import Density, density_at, hessian_trace, moment, spectral_density
from precisionlab.landscape.derivatives import hessian, jacobian
from precisionlab.landscape.extents import Extents, extents_along_line, extents_along_walk, frozen_ratios
from precisionlab.landscape.flatness import flat_dimension, representational_share, visible_from
from precisionlab.landscape.lattice import Census, census, fixed_axis, float_axis
from precisionlab.landscape.minima import Minimum, reach_minima, reach_minimum
from precisionlab.landscape.paths import Path, manifold_path, straight_path
from precisionlab.landscape.planes import Plane, plane_along, plane_at_minimum, plane_through
from precisionlab.landscape.spaces import Split, project_null, project_row, split_spaces
from precisionlab.landscape.spectra import (
    Estimate,
    Spectrum,
    gap,
    hessian_spectrum,
    jacobian_spectrum,
    rank,
    sharpness,
)
from precisionlab.landscape.vectors import flatten, in_float64
from precisionlab.landscape.walking import Walk, retract, straight, walk

__all__ = [
    "Cells",
    "Census",
    "Chart",
    "Density",
    "Estimate",
    "Extents",
    "Minimum",
    "Path",
    "Plane",
    "Spectrum",
    "Split",
    "Walk",
    "census",
    "chart",
    "density_at",
    "extents_along_line",
    "extents_along_walk",
    "fixed_axis",
    "flat_dimension",
    "flatten",
    "float_axis",
    "frozen_ratios",
    "gap",
    "hessian",
    "hessian_spectrum",
    "hessian_trace",
    "in_float64",
    "jacobian",
    "jacobian_spectrum",
    "manifold_path",
    "moment",
    "plane_along",
    "plane_at_minimum",
    "plane_through",
    "project_null",
    "project_row",
    "rank",
    "reach_minima",
    "reach_minimum",
    "representational_share",
    "retract",
    "sharpness",
    "spectral_density",
    "split_spaces",
    "straight",
    "straight_path",
    "visible_from",
    "walk",
]
