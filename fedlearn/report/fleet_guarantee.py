"""Who vouches for what where phones take part by themselves, through gateways."""

from __future__ import annotations

from fedlearn.report.guarantee import Assurances, BoundedParticipation, Charges


def fleet_trusted() -> tuple[str, ...]:
    """Name who sees more than the released model."""
    return (
        "A gateway sees single clipped updates, each beside the device's key, and adds them up: until split "
        "aggregation exists nothing hides them from it. Its database holds the sum of a collection without noise "
        "until the run asks for the next step; of the last step, or of a run that was given up, until a day after its "
        "deadline.",
        "The server sees the sum of a round before its noise.",
        "SuperLink, the proxy in front of it, and whoever reads their memory, their disks or a copy of SuperLink's "
        "database, sees the gateways' sums, also after the run: what was delivered stays in the database's files until "
        "they are overwritten.",
        "The phone maker can tell which credential became which device's key, if it keeps a list.",
    )


def fleet_unprotected() -> tuple[str, ...]:
    """Name what no noise covers."""
    return (
        "Check-in metadata at the gateways: device key, address, time, outcome; kept for 7 days at most. By the "
        "device's key it can be joined to the steps that the device took part in, which are kept to count them; no "
        "update is on disk.",
        "That a step was released at all: at least round_size phones sent for it.",
        "Every metric of the result table: computed on the engineer's own data, not on the phones.",
        "The wall times, and the times in the ledger.",
        "A person with two devices, the sharers of one, and the people written about: the unit is one device.",
    )


def fleet_assurances(charges: Charges, l2_clip_norm: float, participation: BoundedParticipation) -> Assurances:
    """Sort the guarantee by who vouches for it.

    Args:
        charges: what the ledger holds.
        l2_clip_norm: L2 bound of one device's update.
        participation: the bounds the guarantee rests on.
    """
    b, k = participation.min_separation, participation.max_participations
    return Assurances(
        proven=(
            f"Epsilon follows from the mechanism's coefficients, the participation bounds (one in {b} steps, {k} at "
            f"most), the noise multiplier and the {charges.total:,} charges of the ledger; anyone who holds it can "
            "recompute it with `fedlearn ledger verify`, which shares no code with us. Charges that paid for nothing: "
            f"{charges.wasted:,}, counted in epsilon.",
            "Whoever holds config, data, catalogue and code can check them against the digests below.",
        ),
        enforced=(
            f"A phone with this runtime clips its whole update to L2 norm {l2_clip_norm:g}, at weight one, and counts "
            f"its own participations: one in {b} steps, {k} at most. It refuses a task that says otherwise than the "
            "approved plan, and has no word in a message that the public catalogue does not know.",
            "A phone refuses a ledger that is shorter than the one it was shown last, or contradicts it.",
        ),
        word=(
            f"The gateways refused updates over L2 norm {l2_clip_norm:g}, and counted the participations of each "
            "device's key likewise: phones of another runtime are held back by that alone.",
            "One device enrolled one key: a phone maker that hands one device two credentials makes two units of it.",
            "The ledger is complete: its entries are chained and signed by the operator's key, but only a checkpoint "
            "kept elsewhere shows that no later entry is missing.",
            "The server added the noise it was charged for, after the charge. A phone cannot check that.",
            "Whether a step had phones enough did not depend on what was on one of them, nor how long it took.",
            "What choosing the settings on these devices spent, if they were: it is not counted here.",
            "The noise came from the operating system, and its state was shown to nobody.",
            "Nobody else ran a gateway, SuperLink or the proxy in front of it, or read their memory, their disks or a "
            "copy of their databases.",
            "Updates and sums were not kept.",
        ),
    )
