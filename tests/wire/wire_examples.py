"""The messages behind ``tests/wire/frozen``, and the script that wrote them.

Run it only to add a file for a new message: a frozen file that changes means that old and new sides cannot talk, and
that ``WIRE_VERSION`` must rise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedlearn.errors import Reason
from fedlearn.task import CohortReply, RoundTask
from fedlearn.terms import CohortSchedule, ExamplePrivacy, TrainingTerms
from fedlearn.types import Contribution, Level
from fedlearn.wire import encode_contribution, encode_reply, encode_task

FROZEN = Path(__file__).with_name("frozen")
DIGEST = bytes(range(32))
NONCE = bytes(range(100, 116))
STEP = 2.0**-30

TASKS = {
    "task_private": RoundTask(
        run_id="run-7.main.fold0-seed3",
        step=12,
        attempt=1,
        seed=-3,
        parameters={
            "tower": np.array([[0.5, -1.25], [3.0, 0.0]], np.float32),
            "bias": np.array([2.0**-126], np.float32),
        },
        training=TrainingTerms(epochs=2, batch_size=16, learning_rate=0.1, shuffle=True, candidates=64),
        l2_clip_norm=1.0,
        grid_step=STEP,
        sampling_probability=0.5,
        round_key=bytes(range(200, 232)),
    ),
    "task_plain": RoundTask(
        run_id="r",
        step=0,
        attempt=0,
        seed=2**63 - 1,
        parameters={"weights": np.zeros(3, np.float32)},
        training=TrainingTerms(epochs=1, batch_size=1, learning_rate=1.5, shuffle=False, candidates=2),
        l2_clip_norm=0.25,
        grid_step=None,
        sampling_probability=1.0,
        round_key=bytes(32),
    ),
    "task_participation": RoundTask(
        run_id="r",
        step=41,
        attempt=0,
        seed=5,
        parameters={"weights": np.zeros(3, np.float32)},
        training=TrainingTerms(
            epochs=1,
            batch_size=8,
            learning_rate=0.5,
            shuffle=True,
            candidates=4,
            example_privacy=ExamplePrivacy(noise_multiplier=1.25, l2_clip_norm=0.5),
        ),
        l2_clip_norm=0.1,
        grid_step=STEP,
        sampling_probability=1.0,
        round_key=bytes(32),
        participation=CohortSchedule(min_separation=20, availability=0.75),
    ),
    "task_adaptive": RoundTask(
        run_id="r",
        step=0,
        attempt=0,
        seed=5,
        parameters={"weights": np.zeros(3, np.float32)},
        training=TrainingTerms(epochs=1, batch_size=8, learning_rate=0.5, shuffle=True, candidates=4),
        l2_clip_norm=0.1,
        grid_step=STEP,
        sampling_probability=0.25,
        round_key=bytes(32),
        count_scale=0.03,
    ),
}

CONTRIBUTIONS = {
    "contribution_f32_phone": Contribution(
        "f32", 1.0, Level.PHONE, 1, 1.0, DIGEST, NONCE, np.array([0.5, -0.25, 0.0], "<f4")
    ),
    "contribution_f64_phone": Contribution(
        "f64", 1.0, Level.PHONE, 1, 1.0, DIGEST, NONCE, np.array([0.1, -0.2, 0.3], "<f8")
    ),
    "contribution_f64_cohort": Contribution(
        "f64", 1.0, Level.COHORT, 40, 40.0, DIGEST, NONCE, np.array([12.5, -0.1, 1e-300], "<f8")
    ),
    "contribution_grid64_phone": Contribution(
        "grid64", STEP, Level.PHONE, 1, 1.0, DIGEST, NONCE, np.array([1, -(2**29), 0], "<i8")
    ),
    "contribution_grid64_cohort": Contribution(
        "grid64", STEP, Level.COHORT, 1000, 1000.0, DIGEST, NONCE, np.array([2**39, -1, 7], "<i8")
    ),
    "contribution_empty_cohort": Contribution(
        "grid64", STEP, Level.COHORT, 0, 0.0, DIGEST, NONCE, np.array([0, 0, 0], "<i8")
    ),
}

REPLIES = {
    "reply": CohortReply(
        contribution=CONTRIBUTIONS["contribution_grid64_cohort"],
        loss_sum=3912.5,
        trained=990,
        clipped=17,
        norm_sum=401.25,
        rejected={Reason.NOT_FINITE: 2, Reason.OVER_NORM: 1},
    ),
}

FRAMES: dict[str, bytes] = {
    **{name: encode_task(task) for name, task in TASKS.items()},
    **{name: encode_contribution(contribution) for name, contribution in CONTRIBUTIONS.items()},
    **{name: encode_reply(reply) for name, reply in REPLIES.items()},
}

if __name__ == "__main__":
    FROZEN.mkdir(exist_ok=True)
    for name, frame in FRAMES.items():
        path = FROZEN / f"{name}.hex"
        if not path.exists():
            path.write_text(frame.hex() + "\n", encoding="ascii")
