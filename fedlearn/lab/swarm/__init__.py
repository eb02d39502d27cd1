"""Many phones in one process: the protocol side with real keys, for demonstrations, load and faults.

What a phone computes is simulated together with its neighbours; what it says to a gateway is what a phone says. It has
no consent to ask, no store and no guard: ``fedlearn-device`` has those, and joins the same fleet.
"""
