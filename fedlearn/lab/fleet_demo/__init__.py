"""A working fleet on one machine: ``fedlearn demo-fleet``.

SuperLink with TLS, gateways behind resident Flower nodes, a swarm of phones and real daemons, one training with
correlated noise. Keys of all parties are made on the spot, so what is shown is the protocol, not a deployment.
"""
