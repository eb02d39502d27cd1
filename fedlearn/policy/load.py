"""Policy files: YAML or JSON in, canonical bytes and digest out. Strict: what is not exactly a policy is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from fedlearn.errors import MissingDependency, PolicyInvalid
from fedlearn.policy.canonical import canonical_bytes, parse_strict, sha256_hex
from fedlearn.policy.check import check_policy
from fedlearn.policy.decode import from_json, to_json
from fedlearn.policy.document import SCHEMA, Policy

MAX_BYTES: Final = 1 << 20


def load_policy(path: Path | str) -> Policy:
    """Read a policy file: JSON if its name ends in ``.json``, else YAML. The same policy has one digest in both.

    Raises:
        PolicyInvalid: the file cannot be read, or is no policy; names the field and the fix.
        MissingDependency: PyYAML is not installed.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PolicyInvalid(f"{path}: cannot be read ({error.strerror or error}); name a policy file.") from error
    body = parse_strict(data, MAX_BYTES, path.name) if path.suffix == ".json" else parse_yaml(data, path.name)
    return policy_from_json(body)


def policy_from_json(body: object) -> Policy:
    """Convert parsed JSON or YAML.

    Raises:
        PolicyInvalid: a field is missing, unknown, of the wrong type, out of range, or contradicts another one.
    """
    policy = from_json(Policy, body, SCHEMA, "policy")
    check_policy(policy)
    return policy


def policy_to_json(policy: Policy) -> dict[str, Any]:
    """Return the policy as ``policy_from_json`` takes it."""
    return {"schema": SCHEMA, **to_json(policy)}


def policy_bytes(policy: Policy) -> bytes:
    """Return the canonical bytes: what approvers sign."""
    return canonical_bytes(policy_to_json(policy))


def policy_digest(policy: Policy) -> str:
    """Return the SHA-256 (hex) of the canonical bytes: the policy's name in approvals, statuses and records."""
    return sha256_hex(policy_bytes(policy))


def parse_yaml(data: bytes, what: str) -> object:
    """Parse one YAML document in which nothing is ambiguous.

    Numbers are decimal, ``true`` and ``false`` the only booleans, and times are text. Keys given twice, anchors, merge
    keys and tags are refused.

    Raises:
        PolicyInvalid: anything else.
        MissingDependency: PyYAML is not installed.
    """
    try:
        import yaml  # noqa: PLC0415  # optional
    except ImportError as error:
        raise MissingDependency("A policy in YAML needs PyYAML: pip install 'fedlearn[policy]'") from error
    if len(data) > MAX_BYTES:
        raise PolicyInvalid(f"{what}: more than {MAX_BYTES} bytes; a policy is smaller.")
    try:
        return yaml.load(data.decode("utf-8"), Loader=_loader())  # noqa: S506 - a subclass of SafeLoader
    except UnicodeDecodeError as error:
        raise PolicyInvalid(f"{what}: not UTF-8.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, PolicyInvalid):
            raise
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark is not None else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or type(error).__name__
        raise PolicyInvalid(f"{what}{line}: not YAML as policies are written: {problem}.") from error


_LOADERS: list[Any] = []


def _loader() -> Any:
    """Return a SafeLoader that reads what YAML 1.2 reads and nothing twice; made once."""
    if _LOADERS:
        return _LOADERS[0]
    import yaml  # noqa: PLC0415  # optional

    class PolicyLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
        """One reading for every text."""

        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if getattr(event, "anchor", None) is not None:
                raise yaml.composer.ComposerError(None, None, "an anchor or alias; write it out", event.start_mark)
            tag = getattr(event, "tag", None)
            if tag is not None and tag != "!":
                raise yaml.composer.ComposerError(None, None, f"the tag {tag}; leave it out", event.start_mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            found: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key, str):
                    raise yaml.constructor.ConstructorError(None, None, "a key that is no text", key_node.start_mark)
                if key in found:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key[:60]!r} is given twice; keep one", key_node.start_mark
                    )
                found[key] = self.construct_object(value_node, deep=deep)
            return found

    tags = (
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
        ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    )
    for name, shape, first in tags:
        PolicyLoader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(f"^(?:{shape})$"), list(first))
    _LOADERS.append(PolicyLoader)
    return PolicyLoader
