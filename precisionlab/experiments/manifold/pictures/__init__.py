"""What was measured, as pictures: `figures` by caption, and beside them a file for each kind of panel.

`draw_x(measured, axes)` takes what the `measure` of its measurement gave, draws it on axes, or on a figure where it needs
several, returns these, and does nothing else.
"""
