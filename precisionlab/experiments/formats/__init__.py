"""How does training in one format compare with another: on digits, on bytes of text?

Its files:

    digits, bytes    the two questions
    comparison       what they share: configuration, run, claims, figures
    arms             the training loop: formats, modes and seeds side by side
    verdicts         what the half-gap law predicts, beside what was measured
"""
