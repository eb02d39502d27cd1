"""What server and phone both must say about a phone's work: plan, bundle, task. Needs no numpy.

The package hands on no names: import the module that has them.
"""
