"""A SuperLink with TLS and resident nodes on this machine: started, looked at, stopped.

``up`` starts whatever is not running and ``down`` leaves nothing running; what was started is in ``deployment.json``.
"""

from fedlearn_server.deployment.down import down
from fedlearn_server.deployment.layout import default_directory
from fedlearn_server.deployment.records import Deployment, NodeRecord, ProcessRecord, opened
from fedlearn_server.deployment.status import DeploymentStatus, status
from fedlearn_server.deployment.up import up

__all__ = [
    "Deployment",
    "DeploymentStatus",
    "NodeRecord",
    "ProcessRecord",
    "default_directory",
    "down",
    "opened",
    "status",
    "up",
]
