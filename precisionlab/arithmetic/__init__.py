"""Any JAX function, with every floating-point operation rounded.

Its files:

    simulation               `simulate`
    policy, rules            formats and modes by the sites of a training step; by scope, primitive and argument
    primitives               what each primitive of JAX does to floats
    carrying, complexes      the dtypes that a program names, and the carriers that hold them
    frames, entering         where a walk stands; where a number enters a format
    operations               one operation, rounded
    exact/, sums/            + - * / sqrt, and sums in a stated order
    expansions/              operations that are programs of simpler ones
    programs/                the walk through a program
    profile/                 `error_profile`
"""

from precisionlab.arithmetic.profile.profiling import error_profile
from precisionlab.arithmetic.profile.reports import ErrorProfile, Operation
from precisionlab.arithmetic.programs.survey import ScopeWarning, UnlistedWarning
from precisionlab.arithmetic.simulation import simulate
from precisionlab.arithmetic.sums.accumulation import Accumulation, dot

__all__ = ["Accumulation", "ErrorProfile", "Operation", "ScopeWarning", "UnlistedWarning", "dot", "error_profile", "simulate"]
