"""CrossApp-Sim: a simulated city with known tastes, known correlation between apps, and an exact oracle."""

from fedlearn.lab.city.config import CityConfig
from fedlearn.lab.city.generator import City
from fedlearn.lab.city.oracle import Answer, CityOracle

__all__ = ["Answer", "City", "CityConfig", "CityOracle"]
