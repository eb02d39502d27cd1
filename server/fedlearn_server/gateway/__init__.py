"""The gateway: where phones bring their contributions, and the sums of a round are formed.

It hosts a part of an enrolled population behind a resident Flower node. Until split aggregation exists it sees single
clipped updates; what leaves it for SuperLink are sums.
"""
