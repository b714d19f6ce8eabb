"""The slingshot, measured: two problems to overfit, what is done to the weights, one run of it, and what follows from one."""
