"""What no signature can allow: shared by the loader's callers, lint and ``verify_policy``."""

from __future__ import annotations

from typing import Final

from fedlearn.policy.document import Policy, PopulationKind
from fedlearn.policy.keys import is_weak

ALLOWED_COLLECTIONS: Final = ("own_app", "owner_import")
SCRAPED_COLLECTIONS: Final = ("screen", "notification", "accessibility")
"""They have names so that a policy which asks for them is refused by name."""


def forbidden(policy: Policy) -> tuple[str, ...]:
    """Return why the policy may never be acted on, each naming field and fix; () is fine."""
    found = [
        f"sources[{i}].collection={source.collection}: other apps' content is not taken off the screen, from "
        "notifications or through accessibility; use the app's own content (own_app) or what the owner imports "
        "(owner_import)."
        for i, source in enumerate(policy.sources)
        if source.collection in SCRAPED_COLLECTIONS
    ]
    if policy.population.kind is PopulationKind.ENROLLED:
        found += [
            f"recipients[{i}].task_key: a placeholder, for which anybody can sign tasks; put the operator's public key."
            for i, recipient in enumerate(policy.recipients)
            if recipient.task_key and is_weak(recipient.task_key)
        ]
    return tuple(found)
