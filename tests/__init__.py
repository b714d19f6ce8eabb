"""What compilers are told before JAX is loaded."""

import os

# Each worker has a core of its own: nothing is won by compiling the parts of a program side by side.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_parallel_codegen_split_count=1".strip()
# A program from the cache is answered with a screen of CPU features that tune code, which it takes for instructions.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
