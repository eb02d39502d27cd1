"""A private step becomes public in two durable steps, so that a crash in between completes it.

Correlated noise draws a step that was never published again from the state before it, at no further cost. So it must
never be open whether a step was published: its checkpoint is staged beside the secret state first, and from then on it
will be published, these very bytes, whatever happens to the process or to a copy of the run directory.
"""

from __future__ import annotations

from pathlib import Path

from fedlearn.files import state_directory
from fedlearn.privacy.secret_files import (
    clear_leftovers,
    destroy_private,
    make_private_directory,
    replace_private,
    require_private,
)
from fedlearn.privacy.secrets import require_run_id
from fedlearn_server.checkpoint import Checkpoint, load_checkpoint, read_checkpoint


def publish(directory: Path, run_id: str, checkpoint: Checkpoint, *, private: bool) -> str:
    """Replace the checkpoint durably and return its digest; a private one is staged first.

    Args:
        directory: of the training.
        run_id: names what is staged.
        checkpoint: the state after the step that was released last.
        private: whether privacy is on.
    """
    if private:
        staged = _staged(run_id)
        make_private_directory(staged.parent)
        replace_private(staged, checkpoint.to_bytes())
    return checkpoint.publish(directory)


def complete_publication(directory: Path, run_id: str) -> None:
    """Publish what was staged and not published yet, if anything; call it before the checkpoint is read.

    Only the step after the one in ``directory`` is completed: anything else is a matter for tally and ledger.

    Raises:
        ResumeRefused: a checkpoint cannot be read.
        PrivacyError: others can read what is staged.
    """
    staged = _staged(run_id)
    if not staged.exists():
        return
    clear_leftovers(staged)
    found = load_checkpoint(directory)
    waiting = read_checkpoint(require_private(staged))
    if waiting.step == (0 if found is None else found.step) + 1:
        waiting.publish(directory)  # equal states have equal bytes


def forget_publication(run_id: str) -> None:
    """Remove what was staged: the run has ended, and it is public."""
    destroy_private(_staged(run_id))


def _staged(run_id: str) -> Path:
    return state_directory() / "publications" / require_run_id(run_id)
