"""Any JAX function, with every floating-point operation rounded."""

from precisionlab.arithmetic.accumulation import Accumulation, dot
from precisionlab.arithmetic.profiling import error_profile
from precisionlab.arithmetic.programs import ScopeWarning, UnlistedWarning
from precisionlab.arithmetic.reports import ErrorProfile, Operation
from precisionlab.arithmetic.simulation import simulate

__all__ = ["Accumulation", "ErrorProfile", "Operation", "ScopeWarning", "UnlistedWarning", "dot", "error_profile", "simulate"]
