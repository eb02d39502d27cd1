"""Coefficients that ship with the package, one file per mechanism; ``fedlearn.privacy.shipped`` reads them."""
