"""Any JAX function, with every floating-point operation rounded."""

from precisionlab.arithmetic.profile.profiling import error_profile
from precisionlab.arithmetic.profile.reports import ErrorProfile, Operation
from precisionlab.arithmetic.programs.survey import ScopeWarning, UnlistedWarning
from precisionlab.arithmetic.simulation import simulate
from precisionlab.arithmetic.sums.accumulation import Accumulation, dot

__all__ = ["Accumulation", "ErrorProfile", "Operation", "ScopeWarning", "UnlistedWarning", "dot", "error_profile", "simulate"]
