"""The encrypted store of the daemon. Needs no numpy.

The package hands on no names: import the module that has them.
"""
