"""Operations that are programs of simpler ones; `table` says which, the other files hold the programs."""
