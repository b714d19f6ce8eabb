"""The record of what is lost: what there is to see in an update, one look at it, and the record in the optimizer's state."""
