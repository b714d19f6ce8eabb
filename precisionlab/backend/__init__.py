"""What this backend does to roundings.

Its files:

    facts       what it does to numbers, counted
    canaries    programs that broken compilers get wrong, each with its answer
    native      its own narrow arithmetic beside the simulated one
    selftest    what all of that means, in sentences
"""
