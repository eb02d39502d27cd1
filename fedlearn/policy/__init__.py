"""The policy that engineer, phone maker and reviewer share: schema, signatures, and one verify function for all.

Needs no numpy, so that a phone's daemon stays small. The package hands on no names: import the module that has them.
"""
