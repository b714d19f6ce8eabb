"""Operations that are programs of simpler ones: factorizations, transforms, windows."""
