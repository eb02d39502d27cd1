"""The phone side: what turns a clipped update into the bytes that leave a device."""

__version__ = "0.1.0"
