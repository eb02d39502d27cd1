"""The simulated city as a data set of the lab."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from fedlearn.catalogue import Catalogue
from fedlearn.lab.city import City, CityConfig, CityOracle
from fedlearn.lab.config import CityData
from fedlearn.lab.dataset import TaskProtocol
from fedlearn.signals import Device
from fedlearn.types import F64


class CityDataset:
    """CrossApp-Sim, task B1-sim, with its oracle.

    Args:
        data: the ``data`` group of the config.

    Raises:
        OutOfRange, EmptyPopulation, UnknownSetting: a field outside its range.
    """

    def __init__(self, data: CityData) -> None:
        self._city = City(
            CityConfig(
                seed=data.seed,
                devices=data.devices,
                rho=data.rho,
                restaurants=data.restaurants,
                language=data.language,
                sessions_min=data.sessions_min,
                sessions_max=data.sessions_max,
            )
        )

    @property
    def catalogue(self) -> Catalogue:
        """The city's restaurants, and what can be chosen in other apps."""
        return self._city.catalogue

    @property
    def protocol(self) -> TaskProtocol:
        """Last session of each phone tested, all others trained on."""
        return TaskProtocol("B1-sim chat to restaurant, CrossApp-Sim", "the last session of each phone")

    @property
    def digest(self) -> str:
        """Of the generator's settings and version."""
        return self._city.digest

    def devices(self) -> Iterator[Device]:
        """Generate the phones one by one."""
        return self._city.devices()

    def oracle_scores(self, device: int, session: int) -> F64:
        """Expected choice probabilities under the posterior given exactly the device's signals."""
        return self._oracle.scores(device, session)

    def truth_scores(self, device: int, session: int) -> F64:
        """The true utilities."""
        return self._oracle.truth_scores(device, session)

    @cached_property
    def _oracle(self) -> CityOracle:
        return CityOracle(self._city)
