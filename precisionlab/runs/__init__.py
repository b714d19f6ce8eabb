"""What came out: results, the folders that keep them, summaries and plots. Numpy without JAX.

Import the module that you need; nothing is loaded before that.
"""
