"""The story, step by step. Each step prints what was asked and what the phone answered; nothing is made up."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from fedlearn.errors import ConfigError
from fedlearn.lab.device_demo.bundle import Signed
from fedlearn.lab.device_demo.owner import Owner
from fedlearn.lab.device_demo.phone import TIMEOUT_S, Phone
from fedlearn.proto import device_pb2 as pb
from fedlearn_client.receipts import Receipt, verify_receipt

SURFACE, MAPS, OPERATOR = "oem.surface", "maps", "city-operator"
RANK, TRAIN = "restaurants", "restaurants-training"
TEXT, CHOICE = pb.DATA_TYPE_MESSAGE_CONTENT, pb.DATA_TYPE_CHOICE
DEEP = 100


@dataclass
class Story:
    """Tells it.

    Args:
        phone: a running phone with nothing on it.
        owner: whose it is.
        signed: what the phone maker hands over.
        console: where it is told.
    """

    phone: Phone
    owner: Owner
    signed: Signed
    console: Console

    def tell(self) -> None:
        """Tell the whole story; every step needs those before it."""
        self._install()
        self._everything_is_off()
        self._ranking_for_the_surface()
        self._a_caller_without_a_grant()
        self._a_night()
        self._a_server_that_lies()
        self._withdrawal()

    def _install(self) -> None:
        self._chapter("1. The phone maker installs a signed bundle, a catalogue and a status")
        runtime = self.phone.runtime
        broken = bytearray(self.signed.task)
        broken[len(broken) // 2] ^= 1
        try:
            runtime.Install(pb.InstallRequest(task_bundle=bytes(broken)), timeout=TIMEOUT_S)
        except Exception as error:  # noqa: BLE001 - shown, whatever it is
            self._say(f"with one changed bit: [red]{_details(error)}[/red]")
        else:
            raise ConfigError("a changed bundle was installed: this build is broken, do not use it.")
        runtime.Install(pb.InstallRequest(task_bundle=self.signed.task), timeout=TIMEOUT_S)
        runtime.UpdateStatus(pb.UpdateStatusRequest(envelope=self.signed.status), timeout=TIMEOUT_S)
        runtime.Install(pb.InstallRequest(catalogue_bundle=self.signed.catalogue), timeout=TIMEOUT_S)
        plan = self.signed.opened.plan
        terms = plan.mechanism
        self._say(
            f"as signed by 2 of 2 approvers: accepted. Model [b]{plan.model}[/b], "
            f"{sum(_size(p.shape) for p in plan.parameters)} weights; "
            f"{terms.kind} noise {terms.noise_multiplier:.3g} x clip {terms.l2_clip_norm:g}; a phone takes part at "
            f"most {terms.max_participations} times, {terms.min_separation} steps apart."
        )

    def _everything_is_off(self) -> None:
        self._chapter("2. A fresh phone: every source is off")
        self.phone.consent.SetOwner(pb.SetOwnerRequest(age=pb.AGE_CLASS_ADULT), timeout=TIMEOUT_S)
        self._push_all()
        self._say(
            f"chat, books, clips, shop, dining and maps handed over {self._signals()} signals; kept: {self._kept()}."
        )
        self._say(f'a night now: "{self._train()}". Requests that left the phone: {len(self.phone.gateway.requests)}.')
        self._say(f"the place the owner will choose in the end is on place {self._place(SURFACE)} of 600.")

    def _ranking_for_the_surface(self) -> None:
        self._chapter("3. The owner reads the words, and switches sources on for one purpose and one recipient")
        listed = self.phone.consent.List(pb.ListRequest(), timeout=TIMEOUT_S)
        words = next(g.text for g in listed.grants if (g.app, g.purpose) == ("chat", RANK))
        self._say(f"[i]{words}[/i]")
        for app, kind in self._sources():
            self.phone.switch(True, app, kind, RANK, SURFACE)
        self._push_all()
        self._say(f"the same signals again; kept now: {self._kept()}. Of these words, only what the catalogue knows:")
        for text in self.owner.said_last:
            self._say(f"    [cyan]{text}[/cyan]")
        reply = self.phone.ranking(SURFACE)
        table = Table("place", "restaurant", "score")
        for place, item in enumerate(list(reply.items)[:5], 1):
            mark = "[b green]" if item.item == self.owner.will_choose else ""
            table.add_row(str(place), f"{mark}{item.item.removeprefix('restaurant:')}", f"{item.score:.2f}")
        self.console.print(table)
        self._say(f"the surface is told why: [b]{_used(reply)}[/b].")
        self._say(f"the place the owner will choose is now on place [b]{self._place(SURFACE)}[/b].")

    def _a_caller_without_a_grant(self) -> None:
        self._chapter("4. Maps asks too. The owner named nobody but the surface")
        without = self.phone.ranking(MAPS, DEEP)
        self._say(f"Maps gets the ranking without any of it (digest {_digest(without)}), and is told nothing:")
        self._say(f"used = {list(without.used)}. It cannot tell whether there is a chat on this phone at all.")
        self._say(f"the surface's ranking has another digest: {_digest(self.phone.ranking(SURFACE, DEEP))}.")

    def _a_night(self) -> None:
        self._chapter("5. The owner lets the phone train; night comes")
        for app, kind in self._sources():
            self.phone.switch(True, app, kind, TRAIN, OPERATOR)
        self._push_all()
        self._say(f'charging, idle, unmetered: "{self._train()}".')
        entries = self.phone.audit.Egress(pb.EgressRequest(with_bytes=True), timeout=TIMEOUT_S).entries
        table = Table("what left", "bytes", "SHA-256", "state")
        for entry in reversed(entries):
            table.add_row(entry.method, str(entry.size), entry.sha256.hex()[:16], entry.state)
        self.console.print(table)
        sent = b"".join(seen.body for seen in self.phone.gateway.requests)
        words = [word for text in self.owner.said_last for word in text.split() if len(word) > 4]
        found = [word for word in words if word.encode() in sent]
        self._say(f"the gateway saw {len(sent)} bytes; words of the owner in them: {len(found)} of {len(words)}.")
        budget = self.phone.audit.Budget(pb.BudgetRequest(), timeout=TIMEOUT_S)
        self._say(
            f"the phone's own account: epsilon [b]{budget.epsilon:.2f}[/b] of {budget.epsilon_cap:g} at delta "
            f"{budget.delta:g}, charged before the first byte left."
        )
        self.phone.gateway.step += 1
        self._say(f'the next step, asked at once: "{self._train()}".')

    def _a_server_that_lies(self) -> None:
        self._chapter("6. A server asks for less noise, and for a smaller crowd")
        gateway = self.phone.gateway
        gateway.step += self.signed.opened.plan.mechanism.min_separation
        gateway.alter = lambda task: replace(task, mechanism=replace(task.mechanism, noise_multiplier=0.5))
        self._say(f'noise 0.5: "{self._train()}"')
        gateway.alter = lambda task: replace(task, round_size=2)
        self._say(f'two phones in a sum: "{self._train()}"')
        gateway.alter = lambda task: task
        uploads = [seen for seen in gateway.requests if seen.method == "Upload"]
        self._say(f"uploads so far: {len(uploads)}. Nothing was charged for what was refused.")

    def _withdrawal(self) -> None:
        self._chapter("7. The owner changes their mind about chat")
        before = self._kept()
        began = time.perf_counter()
        self.phone.switch(False, "chat", TEXT, TRAIN, OPERATOR)
        reply = self.phone.switch(False, "chat", TEXT, RANK, SURFACE)
        took = time.perf_counter() - began
        statement = json.loads(reply.receipt.statement)
        receipt = Receipt(reply.receipt.statement, reply.receipt.signature, reply.receipt.public_key)
        verify_receipt(receipt)
        self._say(f"signals kept: {before} before, {self._kept()} after; {took * 1000:.0f} ms.")
        self._say("The receipt, whose signature holds:")
        self.console.print_json(json.dumps(statement))
        self._say(f"the surface's next ranking used: {_used(self.phone.ranking(SURFACE))}.")
        self._say(f"the owner's choice is on place {self._place(SURFACE)}.")
        budget = self.phone.audit.Budget(pb.BudgetRequest(), timeout=TIMEOUT_S)
        self._say(
            f"what was spent stays spent: epsilon {budget.epsilon:.2f}, {budget.participations} participation(s)."
        )

    def _chapter(self, title: str) -> None:
        self.console.print()
        self.console.print(Panel(f"[b]{title}[/b]", expand=False, border_style="blue"))

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False)

    def _sources(self) -> Sequence[tuple[str, pb.DataType]]:
        return [("chat", TEXT), *((app, CHOICE) for app in sorted(self.owner.choices))]

    def _push_all(self) -> None:
        self.phone.push("chat", TEXT, self.owner.chat)
        for app, signals in sorted(self.owner.choices.items()):
            self.phone.push(app, CHOICE, signals)

    def _signals(self) -> int:
        return len(self.owner.chat) + sum(map(len, self.owner.choices.values()))

    def _kept(self) -> int:
        return int(self.phone.runtime.Status(pb.StatusRequest(), timeout=TIMEOUT_S).signals)

    def _train(self) -> str:
        return str(self.phone.runtime.TrainNow(pb.TrainNowRequest(purpose=TRAIN), timeout=TIMEOUT_S).outcome)

    def _place(self, caller: str) -> str:
        """Return where the item stands that the owner chose in the end."""
        names = [item.item for item in self.phone.ranking(caller, DEEP).items]
        return str(names.index(self.owner.will_choose) + 1) if self.owner.will_choose in names else f"> {DEEP}"


def _digest(reply: pb.GetReply) -> str:
    plain = pb.GetReply()
    plain.CopyFrom(reply)
    plain.ClearField("ranking_id")
    plain.ClearField("used")
    return hashlib.sha256(plain.SerializeToString(deterministic=True)).hexdigest()[:16]


def _details(error: Exception) -> str:
    details = getattr(error, "details", None)
    return str(details()) if callable(details) else type(error).__name__


def _used(reply: pb.GetReply) -> str:
    return ", ".join(f"{_kind(one.data_type)} of {one.app}" for one in reply.used)


def _kind(number: pb.DataType) -> str:
    return pb.DataType.Name(number).removeprefix("DATA_TYPE_").lower().replace("_", " ")


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
