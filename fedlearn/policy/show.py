"""A policy in plain words, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fedlearn.policy.document import DataType, Policy, PopulationKind, Purpose, PurposeKind, Recipient, Source
from fedlearn.policy.floors import SAMPLED
from fedlearn.policy.keys import is_weak
from fedlearn.policy.lint import floor_spend
from fedlearn.policy.load import policy_digest

_DATA = {DataType.MESSAGE_CONTENT: "what the owner wrote", DataType.CHOICE: "what the owner chose"}
_POPULATION = {
    PopulationKind.SIMULATED: "simulated phones: files that the engineer holds",
    PopulationKind.ENROLLED: "real phones",
}


def policy_words(policy: Policy) -> Iterator[RenderableType]:
    """Yield the policy's parts: heading, who may use what for which purpose, features, floors."""
    yield Text(
        f"Policy {policy.name}, version {policy.version}, until {policy.expires}\n"
        f"Digest {policy_digest(policy)}\n"
        f"For {policy.population.id}: {_POPULATION[policy.population.kind]}, {policy.population.minimum_devices:,} at "
        "least"
    )
    yield _uses(policy)
    for purpose in policy.purposes:
        yield _purpose(policy, purpose)
    yield _features(policy)
    yield _limits(policy)


def _uses(policy: Policy) -> Table:
    table = _table("Who may use what", "app (who answers for it)", "data", "how it comes", "kept", "may serve")
    table.columns[-1].no_wrap = True
    for source in policy.sources:
        table.add_row(
            f"{source.app} ({source.owner})",
            _DATA[source.data_type],
            {"own_app": "the app's own content", "owner_import": "a file the owner imports"}.get(
                source.collection, f"SCRAPED: {source.collection}"
            ),
            f"{source.retention_days} days",
            _serves(source),
        )
    table.caption = "What others wrote changes no bit. Nothing of minors, nor of owners of unknown age."
    return table


def _serves(source: Source) -> str:
    if source.disputed:
        return "NOTHING: somebody claims this data"
    return "\n".join(source.purposes) or "nothing"


def _purpose(policy: Policy, purpose: Purpose) -> Table:
    does = "ranks on the phone" if purpose.kind is PurposeKind.RECOMMEND else "trains; a private sum leaves the phone"
    table = _table(f"Purpose {purpose.id}: {does}", "", "")
    table.show_header = False
    table.add_row("the owner reads", f"{purpose.text} (text version {purpose.text_version})")
    by_id = {recipient.id: recipient for recipient in policy.recipients}
    for name in purpose.recipients:
        table.add_row("goes to", _recipient(by_id[name]))
    table.add_row("only if", "the owner switched on exactly this app, data, purpose and recipient")
    return table


def _recipient(recipient: Recipient) -> str:
    if not recipient.task_key:
        return f"{recipient.name} ({recipient.id}, {recipient.kind})"
    key = "a PLACEHOLDER key" if is_weak(recipient.task_key) else f"key {recipient.task_key[:16]}..."
    return f"{recipient.name} ({recipient.id}, {recipient.kind}; signs tasks with {key})"


def _features(policy: Policy) -> Table:
    table = _table("What models are made of", "feature", "needs", "why", "numbers")
    for feature in policy.features:
        needs = " and ".join(_DATA[data_type] for data_type in feature.needs) or "only the public catalogue"
        table.add_row(feature.name, needs, feature.why, str(feature.width))
    return table


def _limits(policy: Policy) -> Table:
    floors, device = policy.mechanism, policy.device
    table = _table("What every training keeps", "", "")
    table.show_header = False
    table.add_row("noise", f"{', '.join(floors.kinds)}; std at least {floors.min_noise_multiplier:g} times the clip")
    table.add_row("one phone's change", f"norm at most {floors.max_l2_clip_norm:g}")
    table.add_row("a sum", f"of {floors.min_round_size:,} phones at least; {floors.max_steps} steps a run at most")
    sampled = " (sampled cohorts are not bound by it)" if SAMPLED in floors.kinds else ""
    table.add_row(
        "one phone",
        f"at most {floors.max_participations} times a run, {floors.min_separation} steps apart at least{sampled}",
    )
    table.add_row("the population", f"epsilon {policy.budget.epsilon:g} at delta {policy.budget.delta:g} each purpose")
    table.add_row(
        "each phone's own cap",
        f"epsilon {device.epsilon:g} at delta {device.delta:g} over everything; one run at the floors: "
        f"{floor_spend(policy):.3g}",
    )
    table.add_row(
        "each phone's limits",
        f"uploads of {device.max_upload_bytes:,} bytes, catalogues of {device.max_catalogue_bytes:,} bytes, "
        f"{device.max_training_seconds} s a round, {device.max_rounds_per_day} rounds a day",
    )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
