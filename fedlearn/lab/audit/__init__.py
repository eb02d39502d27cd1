"""An empirical audit of the private path: canaries, a valid lower bound, and structural probes, in simulation.

``audit`` runs it all; ``pipeline`` says what is audited, ``simulation`` feeds it, ``estimate`` turns scores into
epsilon, ``probes`` tries known-bad inputs.
"""

from fedlearn.lab.audit.pipeline import Pipeline
from fedlearn.lab.audit.result import AuditResult, Verdict, audit
from fedlearn.lab.audit.simulation import AuditConfig

__all__ = ["AuditConfig", "AuditResult", "Pipeline", "Verdict", "audit"]
