"""What all questions share.

Its files:

    experiment    what an experiment is, and work in stages that survive an interruption
    measured      what a measurement hands over, and what two hypotheses said beforehand
    claiming      claims about whole numbers and about means
    requests      requests that cannot be met, refused as sentences
    panels        what the pictures share
"""
