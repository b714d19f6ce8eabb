"""Where the error of a program comes from.

`profiling` walks it beside a float64 shadow (`shadows`), counts what each rounding did (`seen`), and says it (`reports`).
"""
