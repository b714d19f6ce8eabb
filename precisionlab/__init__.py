from precisionlab.formats import *
from precisionlab.rounding import *
from precisionlab.grids import *
